#include <cstring>

#include "base/check.h"
#include "io/gguf.h"

namespace nibble {
namespace {

constexpr std::uint64_t kAlignment = 32;

// Numbers of value types in the file.
constexpr std::uint32_t kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9;

template <typename T>
void Append(std::string& out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

void AppendText(std::string& out, std::string_view text) {
  Append(out, std::uint64_t{text.size()});
  out += text;
}

}  // namespace

void GgufHeaderBuilder::Key(std::string_view key, std::uint32_t type) {
  AppendText(keys_, key);
  Append(keys_, type);
  ++num_keys_;
}

void GgufHeaderBuilder::SetString(std::string_view key, std::string_view value) {
  Key(key, kString);
  AppendText(keys_, value);
}

void GgufHeaderBuilder::SetU32(std::string_view key, std::uint32_t value) {
  Key(key, kU32);
  Append(keys_, value);
}

void GgufHeaderBuilder::SetF32(std::string_view key, float value) {
  Key(key, kF32);
  Append(keys_, value);
}

void GgufHeaderBuilder::SetBool(std::string_view key, bool value) {
  Key(key, kBool);
  Append(keys_, static_cast<std::uint8_t>(value));
}

void GgufHeaderBuilder::SetStrings(std::string_view key, std::span<const std::string> values) {
  Key(key, kArray);
  Append(keys_, kString);
  Append(keys_, std::uint64_t{values.size()});
  for (const std::string& value : values) {
    AppendText(keys_, value);
  }
}

void GgufHeaderBuilder::SetInts(std::string_view key, std::span<const std::int32_t> values) {
  Key(key, kArray);
  Append(keys_, kI32);
  Append(keys_, std::uint64_t{values.size()});
  for (const std::int32_t value : values) {
    Append(keys_, value);
  }
}

void GgufHeaderBuilder::SetFloats(std::string_view key, std::span<const float> values) {
  Key(key, kArray);
  Append(keys_, kF32);
  Append(keys_, std::uint64_t{values.size()});
  for (const float value : values) {
    Append(keys_, value);
  }
}

void GgufHeaderBuilder::AddTensor(std::string_view name, std::span<const std::int64_t> dims,
                                  GgufType type) {
  const auto block = GgufBlockOf(static_cast<std::uint32_t>(type));
  NIBBLE_CHECK(block && !dims.empty() && dims[0] % block->elements == 0,
               "a tensor whose rows are no whole blocks");
  AppendText(tensors_, name);
  Append(tensors_, static_cast<std::uint32_t>(dims.size()));
  std::int64_t elements = 1;
  for (const std::int64_t dim : dims) {
    Append(tensors_, dim);
    elements *= dim;
  }
  Append(tensors_, static_cast<std::uint32_t>(type));
  Append(tensors_, data_bytes_);
  const auto size = static_cast<std::uint64_t>(elements / block->elements * block->bytes);
  data_bytes_ += size + PaddingAfter(size);
  ++num_tensors_;
}

std::size_t GgufHeaderBuilder::PaddingAfter(std::uint64_t size) {
  return static_cast<std::size_t>((kAlignment - size % kAlignment) % kAlignment);
}

std::string GgufHeaderBuilder::Build() const {
  std::string out;
  Append(out, std::uint32_t{0x46554747U});
  Append(out, std::uint32_t{3});
  Append(out, num_tensors_);
  Append(out, num_keys_);
  out += keys_;
  out += tensors_;
  out.append(PaddingAfter(out.size()), '\0');
  return out;
}

}  // namespace nibble
