#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/check.h"

namespace nibble {

enum class DType : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kU8,
  kI16,
  kI32,
  kI64,
  kBool,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0  // powers of two: 2^(byte - 127), 0xff is no number
};

/// Bytes of one element.
std::size_t SizeBytes(DType dtype);
/// The safetensors spelling: "F32", "BF16", ...
std::string_view Name(DType dtype);
std::optional<DType> ParseDType(std::string_view safetensors_name);

/// Up to 8 dimensions, row-major, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 8;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);
  explicit Shape(std::span<const std::int64_t> dims);

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[static_cast<std::size_t>(i)]; }
  std::span<const std::int64_t> dims() const {
    return {dims_.data(), static_cast<std::size_t>(rank_)};
  }
  /// Product of the dimensions; 1 for rank 0. Parsers check for overflow before they make a Shape.
  std::int64_t num_elements() const;
  std::string ToString() const;  // "[576, 1536]"
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

/// Borrows bytes that somebody else keeps alive (a mapped file, a Tensor, an arena).
struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  std::span<const std::byte> bytes;

  template <typename T>
  std::span<const T> as() const {
    NIBBLE_CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) == 0,
                 "unaligned view");
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
};

/// Owns 64-byte-aligned bytes.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Shape shape);  // zero-filled

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::span<std::byte> bytes() { return {data_.get(), size_bytes_}; }
  std::span<const std::byte> bytes() const { return {data_.get(), size_bytes_}; }
  TensorView view() const { return {dtype_, shape_, bytes()}; }
  template <typename T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(data_.get()), size_bytes_ / sizeof(T)};
  }
  template <typename T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(data_.get()), size_bytes_ / sizeof(T)};
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }  // NOLINT(cppcoreguidelines-no-malloc)
  };
  DType dtype_ = DType::kF32;
  Shape shape_;
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_bytes_ = 0;
};

}  // namespace nibble
