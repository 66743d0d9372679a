#include "checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "io/file.h"
#include "tensor/float16.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kRefBytes = 4096;

// "org/name" as the hub spells it: two parts of letters, digits, '-', '_' and '.'.
bool IsHubName(std::string_view name) {
  const auto slash = name.find('/');
  if (slash == std::string_view::npos || name.find('/', slash + 1) != std::string_view::npos) {
    return false;
  }
  const auto ok = [](std::string_view part) {
    return !part.empty() && part != "." && part != ".." && std::ranges::all_of(part, [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '-' || c == '_' || c == '.';
    });
  };
  return ok(name.substr(0, slash)) && ok(name.substr(slash + 1));
}

}  // namespace

Result<std::vector<float>> WidenFloats(DType dtype, std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / SizeBytes(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
  }
  if (dtype != DType::kF16 && dtype != DType::kBF16) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{} holds no weights that nibble reads", Name(dtype)));
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, bytes.data() + 2 * i, sizeof half);
    values[i] = dtype == DType::kF16 ? F16ToFloat(half) : BF16ToFloat(half);
  }
  return values;
}

std::string PickledMessage(const std::string& file) {
  return fmt::format(
      "{}: the weights are pickled, a format that can run code when it is read; convert them where "
      "you trust them: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT) in "
      "transformers writes safetensors",
      file);
}

Result<void> CheckFinite(const QuantizedTensor& rows, const std::string& file,
                         const std::string& name) {
  const auto finite = [](const std::vector<float>& values) {
    bool all = true;
    for (const float value : values) {
      constexpr std::uint32_t kExponent = 0x7F800000U;
      all &= (std::bit_cast<std::uint32_t>(value) & kExponent) != kExponent;
    }
    return all;
  };
  const bool codes = std::ranges::none_of(
      rows.codes, [&](std::uint8_t code) { return IsNan(rows.spec.codebook, code); });
  if (finite(rows.values) && finite(rows.scales) && finite(rows.minima) && codes) {
    return {};
  }
  return Fail(ErrorCode::kCorruptFile,
              fmt::format("{}: tensor {} has a {} that is infinite or not a number", file, name,
                          rows.values.empty() && codes ? "scale" : "value"));
}

const WeightInfo* Checkpoint::Find(std::string_view name) const {
  const auto all = weights();
  const auto found =
      std::ranges::find_if(all, [&](const WeightInfo& weight) { return weight.name == name; });
  return found == all.end() ? nullptr : &*found;
}

Result<fs::path> FindInHubCache(const std::string& name, const fs::path& hub_cache) {
  const auto at = name.find('@');
  const std::string repository = name.substr(0, at);
  const std::string revision = at == std::string::npos ? "main" : name.substr(at + 1);
  if (!IsHubName(repository) || revision.empty() || revision.find("..") != std::string::npos) {
    return Fail(ErrorCode::kNotFound, fmt::format("{}: no such file or folder", Quote(name)));
  }
  std::string folder = "models--" + repository;
  folder.replace(folder.find('/'), 1, "--");
  const fs::path base = hub_cache / folder;
  const auto missing = [&](const std::string& why) {
    return Fail(ErrorCode::kNotFound,
                fmt::format("{}: {}; download it with: hf download {}{}", Quote(name), why,
                            repository, at == std::string::npos ? "" : " --revision " + revision));
  };
  std::error_code ignored;
  if (!fs::is_directory(base, ignored)) {
    return missing(
        fmt::format("not a file or folder, and not in the hub cache {}", hub_cache.string()));
  }
  std::string commit = revision;
  if (fs::exists(base / "refs" / revision, ignored)) {
    NIBBLE_TRY(text, ReadFile(base / "refs" / revision, kRefBytes));
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
      text.pop_back();
    }
    commit = text;
  }
  const fs::path snapshot = base / "snapshots" / commit;
  if (commit.find('/') != std::string::npos || !fs::is_directory(snapshot, ignored)) {
    return missing(fmt::format("revision {} is not in the hub cache", Quote(revision)));
  }
  if (!fs::exists(snapshot / "config.json", ignored)) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: the snapshot {} is incomplete: it has no config.json", name,
                            snapshot.string()));
  }
  for (const auto& entry : fs::directory_iterator(snapshot, ignored)) {
    if (!fs::exists(entry.path(), ignored)) {  // a link to a blob that never arrived
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: the snapshot is incomplete: {} is missing; download it again",
                              name, entry.path().string()));
    }
  }
  return snapshot;
}

Result<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path,
                                                     const fs::path& hub_cache) {
  std::error_code ignored;
  fs::path where = path;
  if (!fs::exists(where, ignored)) {
    NIBBLE_TRY(found, FindInHubCache(path, hub_cache));
    where = found;
  }
  if (fs::is_directory(where, ignored)) {
    if (!fs::exists(where / "config.json", ignored) && fs::exists(where / kGgufFileName, ignored)) {
      return OpenGgufCheckpoint(where / kGgufFileName);
    }
    return OpenHuggingFaceFolder(where);
  }
  if (where.extension() == ".gguf") {
    return OpenGgufCheckpoint(where);
  }
  if (where.extension() == ".safetensors") {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("{}: give the folder with config.json, not the weights file", where.string()));
  }
  for (const char* extension : {".bin", ".pt", ".pth", ".pkl"}) {
    if (where.extension() == extension) {
      return Fail(ErrorCode::kUnsupported, PickledMessage(where.string()));
    }
  }
  return Fail(
      ErrorCode::kUnsupported,
      fmt::format("{}: neither a folder with config.json nor a .gguf file", where.string()));
}

}  // namespace nibble
