#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/file.h"
#include "tensor/tensor.h"

namespace nibble {

/// One tensor of a safetensors header. Offsets count from the start of the data.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// The header of a safetensors file (checkpoint-formats: 8 bytes of length, JSON, data).
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by offset
  std::uint64_t data_begin = 0;           // in the file
};

/// Parses and checks a header against the file's size: limits, names, dtypes, shape products, and
/// that the tensors cover the data exactly, without holes, overlap or rest. Errors: kCorruptFile,
/// kUnsupported (a dtype), kLimitExceeded.
Result<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> file);

/// A mapped file whose header has been checked.
class SafetensorsFile {
 public:
  static Result<std::unique_ptr<SafetensorsFile>> Open(const std::filesystem::path& path);
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  TensorView View(const SafetensorsEntry& entry) const;
  const MappedFile& file() const { return *file_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  SafetensorsHeader header_;
};

/// The bytes of a header for these entries (begin and end are filled in, in the given order),
/// padded so that the data starts at a multiple of 64. Carries {"format": "pt"}, without which
/// transformers refuses a file.
std::string BuildSafetensorsHeader(std::vector<SafetensorsEntry>& entries);

}  // namespace nibble
