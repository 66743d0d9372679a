#include "compress/scheme.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "checkpoint/gguf_blocks.h"
#include "checkpoint/nibble_layout.h"

namespace nibble {
namespace {

constexpr std::int64_t kGrain = 16;  // what the solvers' panels have
constexpr std::int64_t kUsualGroups[] = {128, 64, 32};

std::vector<std::pair<std::string, Scheme>> MakeSchemes() {
  std::vector<std::pair<std::string, Scheme>> out;
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    out.emplace_back(fmt::format("int{}", bits), Scheme{.bits = bits});
  }
  for (const Codebook table : {Codebook::kNf4, Codebook::kFp4}) {
    out.emplace_back(Name(table), Scheme{.group_size = kNf4Group, .codebook = table});
  }
  for (const Codebook table : {Codebook::kLog4, Codebook::kLog3}) {
    out.emplace_back(Name(table), Scheme{.codebook = table});
  }
  out.emplace_back("mxfp4", Scheme{.group_size = kMxFp4Group,
                                   .codebook = Codebook::kE2M1,
                                   .scale_grid = ScaleGrid::kPowersOfTwo});
  out.emplace_back("nvfp4", Scheme{.group_size = kNvFp4Group,
                                   .codebook = Codebook::kE2M1,
                                   .scale_grid = ScaleGrid::kE4M3});
  const Scheme fp8{.bits = 8, .group_size = 0, .codebook = Codebook::kFp8E4M3};
  out.emplace_back("fp8", fp8);
  out.emplace_back("fp8-block", fp8).second.group_size = kFp8Block;
  out.emplace_back("fp8-tensor", fp8).second.group_size = kWholeTensor;
  out.emplace_back("fp8-e5m2", fp8).second.codebook = Codebook::kFp8E5M2;
  // Blocks of GGUF: uniform grids, which every method knows, and others.
  out.emplace_back("q4_0", Scheme{.bits = 4, .group_size = 32, .gguf = true});
  out.emplace_back("q5_0", Scheme{.bits = 5, .group_size = 32, .gguf = true});
  out.emplace_back("q8_0", Scheme{.bits = 8, .group_size = 32, .gguf = true});
  constexpr std::pair<const char*, GgufType> kBlocks[] = {
      {"q4_1", GgufType::kQ4_1}, {"q5_1", GgufType::kQ5_1}, {"q2_k", GgufType::kQ2_K},
      {"q3_k", GgufType::kQ3_K}, {"q4_k", GgufType::kQ4_K}, {"q5_k", GgufType::kQ5_K},
      {"q6_k", GgufType::kQ6_K}};
  for (const auto& [word, type] : kBlocks) {
    out.emplace_back(word, Scheme{.block_type = type, .gguf = true});
  }
  out.emplace_back("float", Scheme{.keeps_floats = true});
  return out;
}

const std::vector<std::pair<std::string, Scheme>>& Schemes() {
  static const auto schemes = MakeSchemes();
  return schemes;
}

bool DividesAll(const std::vector<ExpectedWeight>& weights, std::int64_t group_size) {
  return std::ranges::all_of(weights, [&](const ExpectedWeight& weight) {
    return !weight.is_linear || weight.cols % group_size == 0;
  });
}

Result<void> CheckGroup(std::int64_t group_size, const ExpectedWeight& weight,
                        const ModelConfig& config) {
  if (group_size % kGrain == 0 && weight.cols % group_size == 0) {
    return {};
  }
  std::string allowed;
  const std::vector<ExpectedWeight> weights = ExpectedWeights(config);
  for (const std::int64_t group : kUsualGroups) {
    allowed += DividesAll(weights, group) ? fmt::format("{}, ", group) : "";
  }
  const std::string what =
      group_size % kGrain != 0
          ? fmt::format("are no multiple of {}", kGrain)
          : fmt::format("do not divide the width {} of {}", weight.cols, weight.name);
  return Fail(ErrorCode::kInvalidArgument,
              fmt::format("groups of {} {}; this model takes {}or 0 for whole rows", group_size,
                          what, allowed));
}

// The block type for a width: K-quants have blocks of 256, and llama.cpp's stand-ins for other
// widths are taken.
GgufType TypeFor(GgufType wanted, std::int64_t cols) {
  const auto block = GgufBlockOf(static_cast<std::uint32_t>(wanted));
  if (cols % block->elements == 0) {
    return wanted;
  }
  switch (wanted) {
    case GgufType::kQ2_K:
    case GgufType::kQ3_K:
      return GgufType::kQ4_0;
    case GgufType::kQ4_K:
      return GgufType::kQ5_0;
    case GgufType::kQ5_K:
      return GgufType::kQ5_1;
    default:
      return GgufType::kQ8_0;
  }
}

}  // namespace

bool Scheme::has_own_groups() const {
  return keeps_floats || gguf || (codebook != Codebook::kNone && !is_log());
}

const std::vector<std::string>& SchemeWords() {
  static const std::vector<std::string> words = [] {
    std::vector<std::string> out;
    for (const auto& [word, scheme] : Schemes()) {
      out.push_back(word);
    }
    return out;
  }();
  return words;
}

std::optional<Scheme> ParseScheme(std::string_view word) {
  const auto found =
      std::ranges::find(Schemes(), word, [](const auto& scheme) { return scheme.first; });
  return found == Schemes().end() ? std::nullopt : std::optional(found->second);
}

std::string WordOf(const Scheme& scheme) {
  const auto found = std::ranges::find_if(Schemes(), [&](const auto& known) {
    Scheme other = known.second;
    if (!other.has_own_groups()) {
      other.group_size = scheme.group_size;
      other.symmetric = scheme.symmetric;
    }
    return other == scheme;
  });
  return found == Schemes().end() ? "" : found->first;
}

ModelFormat UsualFormat(const Scheme& scheme) {
  if (scheme.gguf) {
    return ModelFormat::kGguf;
  }
  const bool bitsandbytes = scheme.codebook == Codebook::kNf4 || scheme.codebook == Codebook::kFp4;
  return NibbleLayoutHolds(scheme.codebook) ? ModelFormat::kNibble
         : bitsandbytes                     ? ModelFormat::kBitsandbytes
                                            : ModelFormat::kCompressedTensors;
}

std::int64_t DefaultGroupSize(const ModelConfig& config) {
  const std::vector<ExpectedWeight> weights = ExpectedWeights(config);
  for (const std::int64_t group : kUsualGroups) {
    if (DividesAll(weights, group)) {
      return group;
    }
  }
  return 0;
}

Result<WeightSpec> SpecOf(const Scheme& scheme, const ExpectedWeight& weight,
                          const ModelConfig& config, DType float_dtype) {
  WeightSpec spec{.float_dtype = float_dtype};
  if (scheme.block_type) {
    spec = *GgufSpecOf(static_cast<std::uint32_t>(TypeFor(*scheme.block_type, weight.cols)));
  } else if (!scheme.keeps_floats) {
    const bool table = scheme.codebook != Codebook::kNone;
    const bool whole = scheme.group_size == kWholeTensor;
    const bool bitsandbytes =
        scheme.codebook == Codebook::kNf4 || scheme.codebook == Codebook::kFp4;
    std::int64_t group = bitsandbytes              ? kNf4Group
                         : scheme.group_size == -1 ? DefaultGroupSize(config)
                                                   : scheme.group_size;
    if (whole && scheme.is_log()) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} has groups or whole rows, no scale for a whole tensor: leave out "
                              "--group-size, or use 0",
                              WordOf(scheme)));
    }
    if (group == 0 || whole) {
      group = weight.cols;
    } else if (scheme.is_fp8()) {  // blocks at the edges are smaller
      group = std::min(group, weight.cols);
    } else if (scheme.has_own_groups() && weight.cols % group != 0) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} has groups of {}, which do not divide the width {} of {}; use "
                              "--scheme int4",
                              WordOf(scheme), group, weight.cols, weight.name));
    } else {
      NIBBLE_TRY_VOID(CheckGroup(group, weight, config));
    }
    spec = {.kind = table ? CodecKind::kCodebook : CodecKind::kUniform,
            .bits = table ? BitsOf(scheme.codebook) : scheme.bits,
            .group_size = group,
            .has_zero_points = !scheme.symmetric && !table,
            .has_f32_scales = table && scheme.codebook != Codebook::kFp8E4M3 && !scheme.is_log(),
            .codebook = scheme.codebook,
            .scale_grid = scheme.scale_grid,
            .has_one_scale = whole};
  }
  spec.rows = weight.rows;
  spec.cols = weight.cols;
  return spec;
}

}  // namespace nibble
