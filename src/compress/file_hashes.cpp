#include "compress/file_hashes.h"

#include <fmt/format.h>

#include <cstring>
#include <span>

#include "base/limits.h"
#include "base/sha256.h"
#include "compress/certificate.h"
#include "io/file.h"
#include "io/gguf.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// The length field and the JSON: the tensors cover the rest without holes.
Result<std::string> SafetensorsHeaderHash(const fs::path& path) {
  NIBBLE_TRY(file, MappedFile::Open(path));
  const auto bytes = file->bytes();
  std::uint64_t length = 0;
  if (bytes.size() < sizeof length) {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: too short for a header", path.string()));
  }
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > bytes.size() - sizeof length) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: the header is longer than the file", path.string()));
  }
  return Sha256Hex(bytes.first(sizeof length + static_cast<std::size_t>(length)));
}

// Metadata (config, vocabulary and template are in it), tensor table, and the padding between
// tensors and behind the last.
Result<std::string> HashOutsideGgufTensors(const fs::path& path) {
  NIBBLE_TRY(file, GgufFile::Open(path));
  const auto bytes = file->file().bytes();
  Sha256 hash;
  NIBBLE_TRY_VOID(GuardMappedReads(path.string(), [&]() -> Result<void> {
    std::size_t begin = 0;
    for (const GgufTensor& tensor : file->header().tensors) {  // in the order of their bytes
      const auto held = file->Bytes(tensor);
      const auto at = static_cast<std::size_t>(held.data() - bytes.data());
      hash.Update(bytes.subspan(begin, at - begin));
      begin = at + held.size();
    }
    hash.Update(bytes.subspan(begin));
    return {};
  }));
  return hash.Hex();
}

}  // namespace

Result<std::string> FileHash(const fs::path& path) {
  if (path.extension() == ".safetensors") {
    return SafetensorsHeaderHash(path);
  }
  if (path.extension() == ".gguf") {
    return HashOutsideGgufTensors(path);
  }
  NIBBLE_TRY(text, ReadFile(path, limits::kTokenizerJsonBytes));
  return Sha256Hex(std::as_bytes(std::span(text)));
}

bool IsCertified(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  return entry.is_regular_file() && name != kCertificateFile && !name.starts_with('.');
}

}  // namespace nibble
