#include "compress/solved_block.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "io/file.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxBlockBytes = std::size_t{16} << 30;

std::string FileName(std::int64_t block) { return fmt::format("block-{:05}.solved", block); }

bool IsPaired(const WeightSpec& spec) { return spec.bits <= 4; }

std::size_t CodeBytes(const WeightSpec& spec) {
  const auto count = static_cast<std::size_t>(spec.rows * spec.cols);
  return IsPaired(spec) ? (count + 1) / 2 : count;
}

bool HasDivisor(const WeightSpec& spec) { return spec.scale_grid == ScaleGrid::kE4M3; }

// Bytes of a weight: codes, scales, zero points, what divides the scales; or values.
std::size_t BytesOf(const WeightSpec& spec) {
  if (spec.kind == CodecKind::kFloat) {
    return static_cast<std::size_t>(spec.rows * spec.cols) * sizeof(float);
  }
  const auto groups = static_cast<std::size_t>(spec.rows * spec.num_groups());
  return CodeBytes(spec) + groups * sizeof(float) + (spec.has_zero_points ? groups : 0) +
         (HasDivisor(spec) ? sizeof(float) : 0);
}

template <typename T>
void Append(const std::vector<T>& values, std::vector<std::byte>& out) {
  const auto bytes = std::as_bytes(std::span(values));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void AppendCodes(const QuantizedTensor& tensor, std::vector<std::byte>& out) {
  if (!IsPaired(tensor.spec)) {
    Append(tensor.codes, out);
    return;
  }
  const std::size_t count = tensor.codes.size();
  const std::size_t begin = out.size();
  out.resize(begin + CodeBytes(tensor.spec));
  const std::uint8_t* const codes = tensor.codes.data();
  std::byte* const pairs = out.data() + begin;
  for (std::size_t i = 0; i + 1 < count; i += 2) {
    pairs[i / 2] = static_cast<std::byte>(codes[i] | unsigned{codes[i + 1]} << 4);
  }
  if (count % 2 == 1) {
    pairs[count / 2] = static_cast<std::byte>(codes[count - 1]);
  }
}

template <typename T>
void Take(std::span<const std::byte>& bytes, std::size_t count, std::vector<T>& out) {
  out.resize(count);
  if (count > 0) {  // memcpy takes no null pointer
    std::memcpy(out.data(), bytes.data(), count * sizeof(T));
  }
  bytes = bytes.subspan(count * sizeof(T));
}

QuantizedTensor TakeTensor(std::span<const std::byte>& bytes, const WeightSpec& spec) {
  QuantizedTensor out{.spec = spec};
  const auto count = static_cast<std::size_t>(spec.rows * spec.cols);
  if (spec.kind == CodecKind::kFloat) {
    Take(bytes, count, out.values);
    return out;
  }
  if (IsPaired(spec)) {
    out.codes.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      out.codes[i] =
          static_cast<std::uint8_t>(std::to_integer<unsigned>(bytes[i / 2]) >> (i % 2 * 4) & 15U);
    }
    bytes = bytes.subspan(CodeBytes(spec));
  } else {
    Take(bytes, count, out.codes);
  }
  const auto groups = static_cast<std::size_t>(spec.rows * spec.num_groups());
  Take(bytes, groups, out.scales);
  Take(bytes, spec.has_zero_points ? groups : 0, out.zero_points);
  if (HasDivisor(spec)) {
    std::vector<float> divisor;
    Take(bytes, 1, divisor);
    out.scale_divisor = divisor.front();
  }
  return out;
}

}  // namespace

std::optional<std::int64_t> BlockOfWeight(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) {
    return std::nullopt;
  }
  std::int64_t block = 0;
  const auto parsed =
      std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), block);
  return parsed.ec == std::errc{} ? std::optional(block) : std::nullopt;
}

std::uint64_t SolvedBlocks::SizeBytes(std::span<const WeightToWrite> weights) {
  std::uint64_t sum = 0;
  for (const WeightToWrite& weight : weights) {
    sum += weight.spec.kind == CodecKind::kFloat ? 0 : BytesOf(weight.spec);
  }
  return sum;
}

bool SolvedBlocks::Has(std::int64_t block) const { return out_.IsDone(FileName(block)); }

Result<void> SolvedBlocks::Save(std::int64_t block, std::span<const SolvedWeight> weights) {
  json::Object facts;
  NIBBLE_TRY(file, out_.OpenFile(FileName(block)));
  for (const SolvedWeight& weight : weights) {
    std::vector<std::byte> bytes;
    bytes.reserve(BytesOf(weight.tensor.spec));
    if (weight.tensor.spec.kind == CodecKind::kFloat) {
      Append(weight.tensor.values, bytes);
    } else {
      AppendCodes(weight.tensor, bytes);
      Append(weight.tensor.scales, bytes);
      Append(weight.tensor.zero_points, bytes);
      if (HasDivisor(weight.tensor.spec)) {
        Append(std::vector<float>{weight.tensor.scale_divisor}, bytes);
      }
    }
    NIBBLE_TRY_VOID(file->Write(bytes));
    facts.Set(weight.name, weight.facts);
  }
  return file->Finish(facts);
}

Result<std::vector<SolvedWeight>> SolvedBlocks::Load(std::int64_t block) const {
  const std::string name = FileName(block);
  const auto facts = out_.DoneFacts(name);
  if (!facts || facts->AsObject() == nullptr) {
    return Fail(ErrorCode::kNotFound,
                fmt::format("{}: is not there", (out_.partial_path() / name).string()));
  }
  NIBBLE_TRY(text, ReadFile(out_.partial_path() / name, kMaxBlockBytes));
  auto bytes = std::as_bytes(std::span(text));
  std::vector<SolvedWeight> solved;
  for (const auto& member : *facts->AsObject()) {
    const auto found = std::ranges::find_if(
        weights_, [&](const WeightToWrite& weight) { return weight.name == member.first; });
    if (found == weights_.end() || bytes.size() < BytesOf(found->spec)) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("{}: does not hold what its journal says",
                                                       (out_.partial_path() / name).string()));
    }
    solved.push_back(
        {.name = member.first, .tensor = TakeTensor(bytes, found->spec), .facts = member.second});
  }
  return solved;
}

Result<void> SolvedBlocks::Clear(std::int64_t num_blocks) {
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    NIBBLE_TRY_VOID(out_.Remove(FileName(block)));
  }
  return {};
}

}  // namespace nibble
