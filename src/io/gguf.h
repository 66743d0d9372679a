#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "io/file.h"

namespace nibble {

/// Block types of GGUF that nibble can decode. Numbers are the file's.
enum class GgufType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30
};

/// "Q4_K" for 12, "type 99" for an id that nobody defined.
std::string GgufTypeName(std::uint32_t type);
struct GgufBlock {
  std::int64_t elements = 1;
  std::int64_t bytes = 0;
};
/// Block geometry of any type that ggml defines, nullopt for removed or unknown ids.
std::optional<GgufBlock> GgufBlockOf(std::uint32_t type);

/// A metadata value. Integers of all widths come as int64 or uint64.
using GgufValue =
    std::variant<bool, std::int64_t, std::uint64_t, double, std::string, std::vector<std::string>,
                 std::vector<std::int64_t>, std::vector<double>, std::vector<bool>>;

struct GgufTensor {
  std::string name;
  std::uint32_t type = 0;
  std::vector<std::int64_t> dims;  // contiguous dimension first, as in the file
  std::uint64_t offset = 0;        // from the start of the data
  std::uint64_t size_bytes = 0;
};

struct GgufHeader {
  std::vector<std::pair<std::string, GgufValue>> metadata;  // in the file's order
  std::vector<GgufTensor> tensors;
  std::uint64_t data_begin = 0;
  const GgufValue* Find(std::string_view key) const;
};

/// Parses and checks a GGUF v3 file (checkpoint-formats 9.1): limits, names, types, dimensions, and
/// that the tensors lie inside the file, aligned, in order and without overlap. Errors:
/// kCorruptFile with the offset, kUnsupported, kLimitExceeded.
Result<GgufHeader> ParseGguf(std::span<const std::byte> file);

/// Builds the header of a GGUF v3 file with an alignment of 32.
class GgufHeaderBuilder {
 public:
  void SetString(std::string_view key, std::string_view value);
  void SetU32(std::string_view key, std::uint32_t value);
  void SetF32(std::string_view key, float value);
  void SetBool(std::string_view key, bool value);
  void SetStrings(std::string_view key, std::span<const std::string> values);
  void SetInts(std::string_view key, std::span<const std::int32_t> values);
  void SetFloats(std::string_view key, std::span<const float> values);
  /// dims: contiguous dimension first. Data follows in this order, each padded to the alignment.
  void AddTensor(std::string_view name, std::span<const std::int64_t> dims, GgufType type);

  /// Bytes before the data of the first tensor, padding included.
  std::string Build() const;
  std::uint64_t data_bytes() const { return data_bytes_; }
  /// Bytes that follow `size` bytes of a tensor.
  static std::size_t PaddingAfter(std::uint64_t size);

 private:
  void Key(std::string_view key, std::uint32_t type);
  std::string keys_, tensors_;
  std::uint64_t num_keys_ = 0, num_tensors_ = 0, data_bytes_ = 0;
};

class GgufFile {
 public:
  static Result<std::unique_ptr<GgufFile>> Open(const std::filesystem::path& path);
  const GgufHeader& header() const { return header_; }
  std::span<const std::byte> Bytes(const GgufTensor& tensor) const;
  const MappedFile& file() const { return *file_; }

  // Typed metadata; nullopt where the key is absent or of another type.
  std::optional<std::string> String(std::string_view key) const;
  std::optional<std::int64_t> Int(std::string_view key) const;
  std::optional<double> Double(std::string_view key) const;
  std::optional<bool> Bool(std::string_view key) const;

 private:
  std::shared_ptr<const MappedFile> file_;
  GgufHeader header_;
};

}  // namespace nibble
