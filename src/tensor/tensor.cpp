#include "tensor/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <new>

namespace nibble {

std::size_t SizeBytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kF8E8M0:
      return 1;
  }
  return 1;
}

std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF64:
      return "F64";
    case DType::kI8:
      return "I8";
    case DType::kU8:
      return "U8";
    case DType::kI16:
      return "I16";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kBool:
      return "BOOL";
    case DType::kF8E4M3:
      return "F8_E4M3";
    case DType::kF8E5M2:
      return "F8_E5M2";
    case DType::kF8E8M0:
      return "F8_E8M0";
  }
  return "?";
}

std::optional<DType> ParseDType(std::string_view name) {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI8, DType::kU8, DType::kI16,
        DType::kI32, DType::kI64, DType::kBool, DType::kF8E4M3, DType::kF8E5M2, DType::kF8E8M0}) {
    if (Name(dtype) == name) {
      return dtype;
    }
  }
  return std::nullopt;
}

Shape::Shape(std::initializer_list<std::int64_t> dims)
    : Shape(std::span<const std::int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const std::int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  NIBBLE_CHECK(dims.size() <= kMaxRank, "a shape has at most 8 dimensions");
  for (std::size_t i = 0; i < dims.size(); ++i) {
    dims_[i] = dims[i];
  }
}

std::int64_t Shape::num_elements() const {
  std::int64_t product = 1;
  for (const std::int64_t dim : dims()) {
    product *= dim;
  }
  return product;
}

std::string Shape::ToString() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(shape) {
  constexpr std::size_t kAlignment = 64;
  size_bytes_ = static_cast<std::size_t>(shape.num_elements()) * SizeBytes(dtype);
  const std::size_t rounded = (size_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded > 0) {
    auto* p = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (p == nullptr) {
      throw std::bad_alloc();
    }
    std::memset(p, 0, rounded);
    data_.reset(p);
  }
}

}  // namespace nibble
