#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::testing {

/// Writes GGUF v3 files for tests, field by field, also wrong ones.
class GgufBuilder {
 public:
  std::uint32_t magic = 0x46554747U;
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  // Where set, these replace the true counts.
  std::uint64_t claimed_tensors = UINT64_MAX;
  std::uint64_t claimed_keys = UINT64_MAX;

  GgufBuilder& U32(std::string_view key, std::uint32_t value) { return Scalar(key, 4, value); }
  GgufBuilder& I32(std::string_view key, std::int32_t value) { return Scalar(key, 5, value); }
  GgufBuilder& U64(std::string_view key, std::uint64_t value) { return Scalar(key, 10, value); }
  GgufBuilder& F32(std::string_view key, float value) { return Scalar(key, 6, value); }
  GgufBuilder& Bool(std::string_view key, bool value) {
    return Scalar(key, 7, static_cast<std::uint8_t>(value));
  }
  GgufBuilder& String(std::string_view key, std::string_view value) {
    return Raw(key, 8, Text(value));
  }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values) {
    std::string body = Bytes(std::uint32_t{8}) + Bytes(std::uint64_t{values.size()});
    for (const std::string& value : values) {
      body += Text(value);
    }
    return Raw(key, 9, body);
  }
  template <typename T>
  GgufBuilder& Array(std::string_view key, std::uint32_t type, const std::vector<T>& values) {
    std::string body = Bytes(type) + Bytes(std::uint64_t{values.size()});
    for (const T value : values) {
      body += Bytes(value);
    }
    return Raw(key, 9, body);
  }
  /// A value of any type, its bytes as given.
  GgufBuilder& Raw(std::string_view key, std::uint32_t type, const std::string& body) {
    keys_ += Text(key) + Bytes(type) + body;
    ++num_keys_;
    return *this;
  }
  /// dims: contiguous dimension first. The data is padded to the alignment.
  GgufBuilder& Tensor(std::string_view name, const std::vector<std::int64_t>& dims,
                      std::uint32_t type, const std::string& data) {
    return TensorAt(name, dims, type, data_.size(), data);
  }
  GgufBuilder& TensorAt(std::string_view name, const std::vector<std::int64_t>& dims,
                        std::uint32_t type, std::uint64_t offset, const std::string& data) {
    infos_ += Text(name) + Bytes(static_cast<std::uint32_t>(dims.size()));
    for (const std::int64_t dim : dims) {
      infos_ += Bytes(dim);
    }
    infos_ += Bytes(type) + Bytes(offset);
    data_ += data;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    ++num_tensors_;
    return *this;
  }

  std::string Header() const {
    std::string file = Bytes(magic) + Bytes(version);
    file += Bytes(claimed_tensors == UINT64_MAX ? num_tensors_ : claimed_tensors);
    file += Bytes(claimed_keys == UINT64_MAX ? num_keys_ : claimed_keys);
    return file + keys_ + infos_;
  }
  std::string Build() const {
    std::string file = Header();
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data_;
  }

  template <typename T>
  static std::string Bytes(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
  }
  static std::string Text(std::string_view text) {
    return Bytes(std::uint64_t{text.size()}) + std::string(text);
  }

 private:
  template <typename T>
  GgufBuilder& Scalar(std::string_view key, std::uint32_t type, T value) {
    return Raw(key, type, Bytes(value));
  }
  std::string keys_, infos_, data_;
  std::uint64_t num_keys_ = 0, num_tensors_ = 0;
};

/// The bytes of any vector of numbers.
template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace nibble::testing
