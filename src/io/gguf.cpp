#include "io/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <unordered_set>

#include "base/limits.h"
#include "base/text.h"

namespace nibble {
namespace {

enum class Kind : std::uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

std::optional<std::uint64_t> FixedBytes(Kind kind) {
  switch (kind) {
    case Kind::kU8:
    case Kind::kI8:
    case Kind::kBool:
      return 1;
    case Kind::kU16:
    case Kind::kI16:
      return 2;
    case Kind::kU32:
    case Kind::kI32:
    case Kind::kF32:
      return 4;
    case Kind::kU64:
    case Kind::kI64:
    case Kind::kF64:
      return 8;
    case Kind::kString:
    case Kind::kArray:
      return std::nullopt;
  }
  return std::nullopt;
}

struct TypeRow {
  std::uint32_t id;
  const char* name;
  GgufBlock block;
};
constexpr TypeRow kTypes[] = {
    {0, "F32", {1, 4}},         {1, "F16", {1, 2}},         {2, "Q4_0", {32, 18}},
    {3, "Q4_1", {32, 20}},      {6, "Q5_0", {32, 22}},      {7, "Q5_1", {32, 24}},
    {8, "Q8_0", {32, 34}},      {9, "Q8_1", {32, 36}},      {10, "Q2_K", {256, 84}},
    {11, "Q3_K", {256, 110}},   {12, "Q4_K", {256, 144}},   {13, "Q5_K", {256, 176}},
    {14, "Q6_K", {256, 210}},   {15, "Q8_K", {256, 292}},   {16, "IQ2_XXS", {256, 66}},
    {17, "IQ2_XS", {256, 74}},  {18, "IQ3_XXS", {256, 98}}, {19, "IQ1_S", {256, 50}},
    {20, "IQ4_NL", {32, 18}},   {21, "IQ3_S", {256, 110}},  {22, "IQ2_S", {256, 82}},
    {23, "IQ4_XS", {256, 136}}, {24, "I8", {1, 1}},         {25, "I16", {1, 2}},
    {26, "I32", {1, 4}},        {27, "I64", {1, 8}},        {28, "F64", {1, 8}},
    {29, "IQ1_M", {256, 56}},   {30, "BF16", {1, 2}},       {34, "TQ1_0", {256, 54}},
    {35, "TQ2_0", {256, 66}},   {39, "MXFP4", {32, 17}},    {40, "NVFP4", {64, 36}},
    {41, "Q1_0", {128, 18}},    {42, "Q2_0", {64, 18}},
};

// A cursor over the header that never reads beyond the file.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::uint64_t offset() const { return at_; }
  std::uint64_t left() const { return bytes_.size() - at_; }

  template <typename T>
  Result<T> Take(const char* what) {
    if (left() < sizeof(T)) {
      return Truncated(what);
    }
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  Result<std::string> String(const char* what, std::uint64_t limit) {
    NIBBLE_TRY(length, Take<std::uint64_t>(what));
    if (length > limit) {
      return Fail(
          ErrorCode::kLimitExceeded,
          fmt::format("{} at byte {} claims {} bytes, the limit is {}", what, at_, length, limit));
    }
    if (length > left()) {
      return Truncated(what);
    }
    std::string text(reinterpret_cast<const char*>(bytes_.data()) + at_,
                     static_cast<std::size_t>(length));
    at_ += length;
    return text;
  }
  tl::unexpected<Error> Truncated(const char* what) const {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("the file ends at byte {} inside {}", bytes_.size(), what));
  }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
};

Result<GgufValue> TakeScalar(Cursor& cursor, Kind kind) {
  constexpr const char* kWhat = "a metadata value";
  switch (kind) {
    case Kind::kU8: {
      NIBBLE_TRY(v, cursor.Take<std::uint8_t>(kWhat));
      return GgufValue(std::int64_t{v});
    }
    case Kind::kI8: {
      NIBBLE_TRY(v, cursor.Take<std::int8_t>(kWhat));
      return GgufValue(std::int64_t{v});
    }
    case Kind::kU16: {
      NIBBLE_TRY(v, cursor.Take<std::uint16_t>(kWhat));
      return GgufValue(std::int64_t{v});
    }
    case Kind::kI16: {
      NIBBLE_TRY(v, cursor.Take<std::int16_t>(kWhat));
      return GgufValue(std::int64_t{v});
    }
    case Kind::kU32: {
      NIBBLE_TRY(v, cursor.Take<std::uint32_t>(kWhat));
      return GgufValue(std::int64_t{v});
    }
    case Kind::kI32: {
      NIBBLE_TRY(v, cursor.Take<std::int32_t>(kWhat));
      return GgufValue(std::int64_t{v});
    }
    case Kind::kF32: {
      NIBBLE_TRY(v, cursor.Take<float>(kWhat));
      return GgufValue(static_cast<double>(v));
    }
    case Kind::kBool: {
      NIBBLE_TRY(v, cursor.Take<std::uint8_t>(kWhat));
      if (v > 1) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("a boolean at byte {} is {}", cursor.offset() - 1, v));
      }
      return GgufValue(v == 1);
    }
    case Kind::kU64: {
      NIBBLE_TRY(v, cursor.Take<std::uint64_t>(kWhat));
      return GgufValue(v);
    }
    case Kind::kI64: {
      NIBBLE_TRY(v, cursor.Take<std::int64_t>(kWhat));
      return GgufValue(v);
    }
    case Kind::kF64: {
      NIBBLE_TRY(v, cursor.Take<double>(kWhat));
      return GgufValue(v);
    }
    case Kind::kString: {
      NIBBLE_TRY(v, cursor.String("a string value", limits::kGgufStringBytes));
      return GgufValue(std::move(v));
    }
    case Kind::kArray:
      break;
  }
  return Fail(ErrorCode::kCorruptFile,
              fmt::format("unknown value type {} before byte {}", static_cast<std::uint32_t>(kind),
                          cursor.offset()));
}

Result<GgufValue> TakeArray(Cursor& cursor) {
  NIBBLE_TRY(raw_kind, cursor.Take<std::uint32_t>("an array's type"));
  NIBBLE_TRY(count, cursor.Take<std::uint64_t>("an array's length"));
  const Kind kind{raw_kind};
  constexpr std::uint64_t kMinimumString = 8;
  if (raw_kind > static_cast<std::uint32_t>(Kind::kF64) || kind == Kind::kArray) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("an array of value type {} before byte {}", raw_kind, cursor.offset()));
  }
  const std::uint64_t each = FixedBytes(kind).value_or(kMinimumString);
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(count, each, &bytes) || bytes > cursor.left()) {
    return cursor.Truncated("an array");
  }
  if (bytes > limits::kGgufArrayBytes) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("an array of {} elements before byte {}, the limit is {} bytes", count,
                            cursor.offset(), limits::kGgufArrayBytes));
  }
  const auto n = static_cast<std::size_t>(count);
  std::vector<std::string> strings;
  std::vector<std::int64_t> integers;
  std::vector<double> doubles;
  std::vector<bool> bools;
  for (std::size_t i = 0; i < n; ++i) {
    NIBBLE_TRY(value, TakeScalar(cursor, kind));
    if (auto* text = std::get_if<std::string>(&value)) {
      strings.push_back(std::move(*text));
    } else if (const auto* integer = std::get_if<std::int64_t>(&value)) {
      integers.push_back(*integer);
    } else if (const auto* large = std::get_if<std::uint64_t>(&value)) {
      if (*large > static_cast<std::uint64_t>(INT64_MAX)) {
        return Fail(ErrorCode::kUnsupported,
                    fmt::format("an array element beyond 2^63 before byte {}", cursor.offset()));
      }
      integers.push_back(static_cast<std::int64_t>(*large));
    } else if (const auto* real = std::get_if<double>(&value)) {
      doubles.push_back(*real);
    } else if (const auto* flag = std::get_if<bool>(&value)) {
      bools.push_back(*flag);
    }
  }
  switch (kind) {
    case Kind::kString:
      return GgufValue(std::move(strings));
    case Kind::kF32:
    case Kind::kF64:
      return GgufValue(std::move(doubles));
    case Kind::kBool:
      return GgufValue(std::move(bools));
    default:
      return GgufValue(std::move(integers));
  }
}

Result<GgufTensor> TakeTensor(Cursor& cursor, std::uint64_t alignment) {
  GgufTensor tensor;
  NIBBLE_TRY(name, cursor.String("a tensor's name", limits::kTensorNameBytes));
  tensor.name = std::move(name);
  const std::string at = fmt::format("tensor \"{}\"", Quote(tensor.name));
  const auto corrupt = [&](const std::string& what) {
    return Fail(ErrorCode::kCorruptFile, at + ": " + what);
  };
  if (tensor.name.empty() || !IsUtf8(tensor.name) || tensor.name.find('\0') != std::string::npos) {
    return corrupt("the name is empty, not UTF-8 or holds a NUL");
  }
  NIBBLE_TRY(rank, cursor.Take<std::uint32_t>("a tensor's rank"));
  if (rank < 1 || rank > static_cast<std::uint32_t>(limits::kGgufRank)) {
    return corrupt(fmt::format("{} dimensions, expected 1 to {}", rank, limits::kGgufRank));
  }
  std::uint64_t elements = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    NIBBLE_TRY(dim, cursor.Take<std::int64_t>("a tensor's dimension"));
    if (dim < 1 || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(dim), &elements)) {
      return corrupt(fmt::format("dimension {} is {}", i, dim));
    }
    tensor.dims.push_back(dim);
  }
  NIBBLE_TRY(type, cursor.Take<std::uint32_t>("a tensor's type"));
  tensor.type = type;
  const auto block = GgufBlockOf(type);
  if (!block) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: {} is not a type of GGUF v3", at, GgufTypeName(type)));
  }
  if (tensor.dims[0] % block->elements != 0) {
    return corrupt(fmt::format("rows of {} elements are no multiple of {}'s block of {}",
                               tensor.dims[0], GgufTypeName(type), block->elements));
  }
  if (__builtin_mul_overflow(elements / static_cast<std::uint64_t>(block->elements),
                             static_cast<std::uint64_t>(block->bytes), &tensor.size_bytes)) {
    return corrupt("the size overflows");
  }
  NIBBLE_TRY(offset, cursor.Take<std::uint64_t>("a tensor's offset"));
  tensor.offset = offset;
  if (offset % alignment != 0) {
    return corrupt(fmt::format("offset {} is no multiple of the alignment {}", offset, alignment));
  }
  return tensor;
}

}  // namespace

std::string GgufTypeName(std::uint32_t type) {
  for (const TypeRow& row : kTypes) {
    if (row.id == type) {
      return row.name;
    }
  }
  return fmt::format("type {}", type);
}

std::optional<GgufBlock> GgufBlockOf(std::uint32_t type) {
  for (const TypeRow& row : kTypes) {
    if (row.id == type) {
      return row.block;
    }
  }
  return std::nullopt;
}

const GgufValue* GgufHeader::Find(std::string_view key) const {
  const auto found =
      std::ranges::find_if(metadata, [&](const auto& pair) { return pair.first == key; });
  return found == metadata.end() ? nullptr : &found->second;
}

Result<GgufHeader> ParseGguf(std::span<const std::byte> file) {
  Cursor cursor(file);
  NIBBLE_TRY(magic, cursor.Take<std::uint32_t>("the magic number"));
  if (magic != 0x46554747U) {
    return Fail(ErrorCode::kCorruptFile, "not a GGUF file: it does not begin with \"GGUF\"");
  }
  NIBBLE_TRY(version, cursor.Take<std::uint32_t>("the version"));
  if (version != 3) {
    const bool swapped = __builtin_bswap32(version) <= 3;
    return Fail(ErrorCode::kUnsupported,
                swapped ? std::string("a big-endian GGUF file; nibble reads little-endian ones")
                        : fmt::format("GGUF version {}; nibble reads version 3", version));
  }
  NIBBLE_TRY(num_tensors, cursor.Take<std::uint64_t>("the number of tensors"));
  NIBBLE_TRY(num_keys, cursor.Take<std::uint64_t>("the number of keys"));
  if (num_tensors > limits::kTensors || num_keys > limits::kGgufKeys) {
    return Fail(ErrorCode::kLimitExceeded,
                fmt::format("{} tensors and {} keys; the limits are {} and {}", num_tensors,
                            num_keys, limits::kTensors, limits::kGgufKeys));
  }
  constexpr std::uint64_t kMinimumKey = 8 + 4 + 1;
  constexpr std::uint64_t kMinimumTensor = 8 + 4 + 8 + 4 + 8;
  if (num_keys * kMinimumKey + num_tensors * kMinimumTensor > cursor.left()) {
    return cursor.Truncated("the header");
  }
  GgufHeader header;
  std::unordered_set<std::string> names;
  std::uint64_t alignment = 32;
  for (std::uint64_t i = 0; i < num_keys; ++i) {
    NIBBLE_TRY(key, cursor.String("a key", limits::kTensorNameBytes));
    if (!IsUtf8(key) || key.find('\0') != std::string::npos || !names.insert(key).second) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("key \"{}\" before byte {} is repeated or not UTF-8", Quote(key),
                              cursor.offset()));
    }
    NIBBLE_TRY(raw_kind, cursor.Take<std::uint32_t>("a value's type"));
    const Kind kind{raw_kind};
    auto value = kind == Kind::kArray ? TakeArray(cursor) : TakeScalar(cursor, kind);
    if (!value) {
      return Fail(value.error(), fmt::format("key \"{}\": ", Quote(key)));
    }
    if (key == "general.alignment") {
      const auto* number = std::get_if<std::int64_t>(&*value);
      if (number == nullptr || *number < 1 ||
          static_cast<std::uint64_t>(*number) > limits::kGgufAlignment ||
          !std::has_single_bit(static_cast<std::uint64_t>(*number))) {
        return Fail(ErrorCode::kCorruptFile, "general.alignment is not a power of two up to 4096");
      }
      alignment = static_cast<std::uint64_t>(*number);
    }
    header.metadata.emplace_back(std::move(key), std::move(*value));
  }
  names.clear();
  for (std::uint64_t i = 0; i < num_tensors; ++i) {
    NIBBLE_TRY(tensor, TakeTensor(cursor, alignment));
    if (!names.insert(tensor.name).second) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("tensor \"{}\" appears twice", Quote(tensor.name)));
    }
    header.tensors.push_back(std::move(tensor));
  }
  header.data_begin = (cursor.offset() + alignment - 1) / alignment * alignment;
  const std::uint64_t data_bytes =
      file.size() > header.data_begin ? file.size() - header.data_begin : 0;
  std::uint64_t covered = 0;
  for (const GgufTensor& tensor : header.tensors) {
    if (tensor.offset < covered) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("tensor \"{}\" at offset {} overlaps the one before it, which ends at {}",
                      Quote(tensor.name), tensor.offset, covered));
    }
    if (tensor.offset - covered >= alignment) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("a hole of {} bytes before tensor \"{}\"", tensor.offset - covered,
                              Quote(tensor.name)));
    }
    if (tensor.offset > data_bytes || tensor.size_bytes > data_bytes - tensor.offset) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("tensor \"{}\" needs bytes {} to {} of the data, the file has {}",
                              Quote(tensor.name), tensor.offset, tensor.offset + tensor.size_bytes,
                              data_bytes));
    }
    covered = tensor.offset + tensor.size_bytes;
  }
  if (data_bytes >= covered + limits::kGgufAlignment) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{} bytes follow the last tensor", data_bytes - covered));
  }
  return header;
}

Result<std::unique_ptr<GgufFile>> GgufFile::Open(const std::filesystem::path& path) {
  auto opened = std::make_unique<GgufFile>();
  NIBBLE_TRY(file, MappedFile::Open(path));
  opened->file_ = file;
  NIBBLE_TRY_VOID(GuardMappedReads(path.string(), [&]() -> Result<void> {
    auto header = ParseGguf(file->bytes());
    if (!header) {
      return Fail(header.error(), path.string() + ": ");
    }
    opened->header_ = std::move(*header);
    return {};
  }));
  return opened;
}

std::span<const std::byte> GgufFile::Bytes(const GgufTensor& tensor) const {
  return file_->bytes().subspan(static_cast<std::size_t>(header_.data_begin + tensor.offset),
                                static_cast<std::size_t>(tensor.size_bytes));
}

std::optional<std::string> GgufFile::String(std::string_view key) const {
  const GgufValue* value = header_.Find(key);
  const auto* text = value == nullptr ? nullptr : std::get_if<std::string>(value);
  return text == nullptr ? std::nullopt : std::optional(*text);
}

std::optional<std::int64_t> GgufFile::Int(std::string_view key) const {
  const GgufValue* value = header_.Find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* number = std::get_if<std::int64_t>(value)) {
    return *number;
  }
  if (const auto* number = std::get_if<std::uint64_t>(value);
      number != nullptr && *number <= INT64_MAX) {
    return static_cast<std::int64_t>(*number);
  }
  return std::nullopt;
}

std::optional<double> GgufFile::Double(std::string_view key) const {
  const GgufValue* value = header_.Find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* number = std::get_if<double>(value)) {
    return *number;
  }
  if (const auto number = Int(key)) {
    return static_cast<double>(*number);
  }
  return std::nullopt;
}

std::optional<bool> GgufFile::Bool(std::string_view key) const {
  const GgufValue* value = header_.Find(key);
  const auto* flag = value == nullptr ? nullptr : std::get_if<bool>(value);
  return flag == nullptr ? std::nullopt : std::optional(*flag);
}

}  // namespace nibble
