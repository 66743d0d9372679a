#include "io/safetensors.h"

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>

#include "checkpoint/checkpoint.h"

// The input is "config.json NUL model.safetensors". The container is parsed from memory; what
// parses is then opened as a folder, and what opens must give every row of every weight.
namespace {

namespace fs = std::filesystem;

const fs::path& Folder() {
  static const fs::path folder = [] {
    const fs::path path = fs::temp_directory_path() / ("nibble_fuzz_" + std::to_string(getpid()));
    fs::create_directories(path);
    static_cast<void>(std::atexit([] { fs::remove_all(Folder()); }));
    return path;
  }();
  return folder;
}

void Write(const char* name, const std::uint8_t* data, std::size_t size) {
  std::ofstream(Folder() / name, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  const void* nul = std::memchr(data, 0, size);
  const std::size_t config_size =
      nul == nullptr ? 0 : static_cast<std::size_t>(static_cast<const std::uint8_t*>(nul) - data);
  const std::size_t begin = nul == nullptr ? 0 : config_size + 1;
  const auto file = std::as_bytes(std::span(data + begin, size - begin));
  auto header = ParseSafetensorsHeader(file);
  if (!header) {
    return 0;
  }
  std::uint64_t covered = header->data_begin;
  for (const SafetensorsEntry& entry : header->entries) {
    covered += static_cast<std::uint64_t>(entry.shape.num_elements()) * SizeBytes(entry.dtype);
  }
  if (covered != file.size()) {
    std::abort();
  }
  // What we would write for these tensors reads back the same.
  std::string again = BuildSafetensorsHeader(header->entries);
  again.resize(again.size() + file.size() - static_cast<std::size_t>(header->data_begin));
  const auto reread = ParseSafetensorsHeader(std::as_bytes(std::span(again)));
  if (!reread || reread->entries.size() != header->entries.size()) {
    std::abort();
  }
  if (config_size == 0) {
    return 0;
  }
  Write("config.json", data, config_size);
  Write("generation_config.json", data, config_size);  // the same members serve for both
  Write("tokenizer_config.json", data, config_size);
  Write("model.safetensors", data + begin, size - begin);
  const auto checkpoint = Checkpoint::Open(Folder().string());
  if (!checkpoint) {
    return 0;
  }
  if (!ParseModelConfig(ToHuggingFaceConfig((*checkpoint)->config()), "written")) {
    std::abort();
  }
  for (const WeightInfo& weight : (*checkpoint)->weights()) {
    const auto parts = (*checkpoint)->RawParts(weight);
    if (!parts || parts->empty()) {
      std::abort();
    }
    (*checkpoint)->Release(weight);
    const auto rows = (*checkpoint)->ReadRows(weight, 0, weight.spec.rows);
    if (rows && !Validate(*rows)) {
      std::abort();
    }
  }
  return 0;
}
