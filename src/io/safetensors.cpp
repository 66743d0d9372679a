#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/limits.h"
#include "base/text.h"
#include "json/value.h"

namespace nibble {
namespace {

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::size_t kDataAlignment = 64;

tl::unexpected<Error> Corrupt(const std::string& what) {
  return Fail(ErrorCode::kCorruptFile, what);
}

Result<SafetensorsEntry> ParseEntry(const std::string& name, const json::Value& value,
                                    std::uint64_t data_bytes) {
  const std::string at = fmt::format("tensor \"{}\"", Quote(name));
  if (name.empty() || name.size() > limits::kTensorNameBytes ||
      name.find('\0') != std::string::npos) {
    return Corrupt(fmt::format("{}: the name is empty, too long or holds a NUL", at));
  }
  const json::Object* members = value.AsObject();
  if (members == nullptr) {
    return Corrupt(fmt::format("{}: expected an object, found {}", at, value.TypeName()));
  }
  for (const auto& [key, ignored] : *members) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Corrupt(fmt::format("{}: unknown member \"{}\"", at, Quote(key)));
    }
  }
  SafetensorsEntry entry{.name = name};
  const json::Value* dtype = value.Find("dtype");
  const std::string* dtype_name = dtype == nullptr ? nullptr : dtype->AsString();
  if (dtype_name == nullptr) {
    return Corrupt(fmt::format("{}: dtype is missing", at));
  }
  const auto parsed = ParseDType(*dtype_name);
  if (!parsed) {
    return Fail(
        ErrorCode::kUnsupported,
        fmt::format("{}: dtype {} is not supported (F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL are)",
                    at, Quote(*dtype_name)));
  }
  entry.dtype = *parsed;
  const json::Value* shape = value.Find("shape");
  const json::Array* dims = shape == nullptr ? nullptr : shape->AsArray();
  if (dims == nullptr || dims->size() > static_cast<std::size_t>(limits::kSafetensorsRank)) {
    return Corrupt(fmt::format("{}: shape is missing or has more than {} dimensions", at,
                               limits::kSafetensorsRank));
  }
  std::vector<std::int64_t> sizes;
  std::uint64_t bytes = SizeBytes(entry.dtype);
  for (const json::Value& dim : *dims) {
    const auto size = dim.AsInt();
    if (!size || *size < 0 || dim.IsDouble()) {
      return Corrupt(fmt::format("{}: a dimension is not a whole number", at));
    }
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(*size), &bytes)) {
      return Corrupt(fmt::format("{}: the shape overflows", at));
    }
    sizes.push_back(*size);
  }
  entry.shape = Shape(std::span<const std::int64_t>(sizes));
  const json::Value* offsets = value.Find("data_offsets");
  const json::Array* pair = offsets == nullptr ? nullptr : offsets->AsArray();
  const auto number = [&](std::size_t i) -> std::optional<std::uint64_t> {
    return pair == nullptr || pair->size() != 2 || (*pair)[i].IsDouble() ? std::nullopt
                                                                         : (*pair)[i].AsUint();
  };
  if (!number(0) || !number(1)) {
    return Corrupt(fmt::format("{}: data_offsets must be two whole numbers", at));
  }
  entry.begin = *number(0);
  entry.end = *number(1);
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return Corrupt(fmt::format("{}: data_offsets [{}, {}) lie outside the {} bytes of data", at,
                               entry.begin, entry.end, data_bytes));
  }
  if (entry.end - entry.begin != bytes) {
    return Corrupt(fmt::format("{}: {} {} takes {} bytes, data_offsets give {}", at,
                               Name(entry.dtype), entry.shape.ToString(), bytes,
                               entry.end - entry.begin));
  }
  return entry;
}

}  // namespace

Result<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return Corrupt(fmt::format("{} bytes are too short for a safetensors file", file.size()));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > limits::kSafetensorsHeaderBytes) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("the header claims {} bytes, the limit is {}", length,
                            limits::kSafetensorsHeaderBytes));
  }
  if (length > file.size() - kLengthBytes) {
    return Corrupt(fmt::format("the header claims {} bytes, the file has {}", length,
                               file.size() - kLengthBytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                              static_cast<std::size_t>(length));
  if (text.empty() || text.front() != '{') {
    return Corrupt("the header does not begin with '{'");
  }
  auto root = json::Parse(text, {.max_bytes = limits::kSafetensorsHeaderBytes});
  if (!root) {
    return Fail(root.error(), "header: ");
  }
  const json::Object* members = root->AsObject();
  if (members == nullptr) {
    return Corrupt("the header is not a JSON object");
  }
  if (members->size() > limits::kTensors + 1) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("{} tensors, the limit is {}", members->size(), limits::kTensors));
  }
  SafetensorsHeader header{.data_begin = kLengthBytes + length};
  const std::uint64_t data_bytes = file.size() - header.data_begin;
  for (const auto& [name, value] : *members) {
    if (name == "__metadata__") {
      const json::Object* metadata = value.AsObject();
      if (metadata == nullptr ||
          !std::ranges::all_of(*metadata, [](const auto& m) { return m.second.IsString(); })) {
        return Corrupt("__metadata__ must map strings to strings");
      }
      continue;
    }
    NIBBLE_TRY(entry, ParseEntry(name, value, data_bytes));
    header.entries.push_back(std::move(entry));
  }
  std::ranges::stable_sort(header.entries,
                           [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                             return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
                           });
  std::uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != covered) {
      return Corrupt(fmt::format("tensor \"{}\" begins at {}, expected {}: the data has {}",
                                 Quote(entry.name), entry.begin, covered,
                                 entry.begin > covered ? "a hole" : "an overlap"));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    return Corrupt(fmt::format("the tensors cover {} bytes, the file has {}", covered, data_bytes));
  }
  return header;
}

Result<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::filesystem::path& path) {
  auto opened = std::make_unique<SafetensorsFile>();
  NIBBLE_TRY(file, MappedFile::Open(path));
  opened->file_ = file;
  const auto parsed = GuardMappedReads(path.string(), [&]() -> Result<void> {
    auto header = ParseSafetensorsHeader(file->bytes());
    if (!header) {
      return Fail(header.error(), path.string() + ": ");
    }
    opened->header_ = std::move(*header);
    return {};
  });
  if (!parsed) {
    return tl::unexpected<Error>(parsed.error());
  }
  return opened;
}

TensorView SafetensorsFile::View(const SafetensorsEntry& entry) const {
  return {entry.dtype, entry.shape,
          file_->bytes().subspan(static_cast<std::size_t>(header_.data_begin + entry.begin),
                                 static_cast<std::size_t>(entry.end - entry.begin))};
}

std::string BuildSafetensorsHeader(std::vector<SafetensorsEntry>& entries) {
  json::Object root;
  root.Set("__metadata__", json::Object()).AsObject()->Set("format", "pt");
  std::uint64_t offset = 0;
  for (SafetensorsEntry& entry : entries) {
    entry.begin = offset;
    offset += static_cast<std::uint64_t>(entry.shape.num_elements()) * SizeBytes(entry.dtype);
    entry.end = offset;
    json::Array dims;
    for (const std::int64_t dim : entry.shape.dims()) {
      dims.push_back(dim);
    }
    json::Object value;
    value.Set("dtype", std::string(Name(entry.dtype)));
    value.Set("shape", std::move(dims));
    value.Set("data_offsets", json::Array{entry.begin, entry.end});
    root.Set(entry.name, std::move(value));
  }
  std::string text = json::Dump(root);
  text.append((kDataAlignment - (kLengthBytes + text.size()) % kDataAlignment) % kDataAlignment,
              ' ');
  const std::uint64_t length = text.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + text;
}

}  // namespace nibble
