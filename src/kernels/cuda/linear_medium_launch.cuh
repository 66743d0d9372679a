#pragma once

// From a product to launches of linear_medium.cuh: how many tiles and quads a pass has, how deep
// the rings are, which instantiation it is.

#include "kernels/cuda/linear_medium.cuh"
#include "kernels/cuda/tensor_map.h"

namespace nibble::cuda {

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens, int kQuads>
int LaunchMediumAs(MediumArgs args, int pairs, cudaStream_t stream) {
  constexpr int kTiles = kQuads * kMediumQuad;
  constexpr bool kTight = kMediumIsTight<kFormat, kTokens, kQuads>;
  constexpr bool kHasTable = TableBytes(kFormat) > 0;
  constexpr int kTurns = kTight ? 2 : 1;
  constexpr int kSentBytes = kTiles * kTileRows * kTokens * 4;
  constexpr int kSumBytes = kSentBytes / kTurns;
  constexpr int kRest = (kHasTable ? kWideTableBytes : kSentBytes) + 2 * kTiles * kTileRows * 4 +
                        2 * kTiles * static_cast<int>(sizeof(MediumOutput)) + kMediumSlices * 4 +
                        2 * kNormWarps * 4 + (3 + kTurns) * 8;
  constexpr int kMostDepth = kTight ? kTightDepth : 4;
  const LinearArgs& linear = args.linear;
  const int unit_bytes = kTight ? linear.layout.unit_cols / kHalfCols * HalfCodes<kFormat>::kBytes
                                : linear.layout.unit_bytes;
  args.stage_bytes = linear.layout.unit_cols * kTokens * 2 + kTiles * unit_bytes;
  args.stage_bytes = (args.stage_bytes > kSumBytes ? args.stage_bytes : kSumBytes) + 1023;
  args.stage_bytes -= args.stage_bytes % 1024;
  const int slot = kMediumSlices * (args.stage_bytes + 16);
  args.depth =
      (kMediumSmem - kRest) / slot > kMostDepth ? kMostDepth : (kMediumSmem - kRest) / slot;
  CUtensorMap map;
  if (const int error = EncodeTensorMap(&map, linear.x, linear.layout.cols, linear.num_tokens,
                                        linear.x_stride * 2, kTokens);
      error != cudaSuccess) {
    return error;
  }
  auto* kernel = LinearMedium<kFormat, kGrid, kFineScales, kTokens, kQuads>;
  static const cudaError_t configured =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMediumSmem);
  if (configured != cudaSuccess) {
    return configured;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs));
  config.blockDim = dim3(kMediumThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(args.depth * slot + kRest);
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = 2;
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, args, map);
}

template <Format kFormat, Grid kGrid, bool kFineScales, int kTokens>
int LaunchMediumTokens(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  MediumArgs args{.linear = linear};
  while (1 << args.sub_shift < linear.layout.sub_cols) {
    ++args.sub_shift;
  }
  const bool gated = linear.epilogue == Epilogue::kSwiGlu;
  for (int p = 0; p < kMaxParts; ++p) {
    args.first_tile[p + 1] =
        args.first_tile[p] + (p < (gated ? 1 : linear.num_parts) ? linear.parts[p].num_tiles : 0);
  }
  const int tiles = args.first_tile[kMaxParts];
  const int most_quads = (tiles + kMediumQuad - 1) / kMediumQuad;
  const int pairs = most_quads < num_sms / 2 ? most_quads : num_sms / 2;
  args.tiles_per_pair = tiles / pairs;
  args.extra_tiles = tiles % pairs;
  // Quads of a pass, so many that registers and a ring of two stages suffice.
  constexpr bool kHasRoom =  // more scales have none in the gaps of the table
      kFormat == Format::kW4 || (kFormat == Format::kNf4 && !(kFineScales && kTokens == 32));
  constexpr int kMost = kHasRoom ? 3 : kFormat == Format::kF16 ? 1 : 2;
  const int copies = gated ? 2 : 1;  // a tile and its gate
  const int of_pair = (tiles + pairs - 1) / pairs;
  const int of_most = kMost * kMediumQuad / copies;
  const int passes = (of_pair + of_most - 1) / of_most;
  const int of_pass = ((of_pair + passes - 1) / passes * copies + kMediumQuad - 1) / kMediumQuad;
  const auto launch = [&]<int kQuads>() {
    return LaunchMediumAs<kFormat, kGrid, kFineScales, kTokens, kQuads>(args, pairs, stream);
  };
  if constexpr (kMost >= 3) {
    if (of_pass == 3) {
      return launch.template operator()<3>();
    }
  }
  return of_pass == 2 ? launch.template operator()<2>() : launch.template operator()<1>();
}

/// Launches as often as the tokens need.
template <Format kFormat, Grid kGrid, bool kFineScales>
int LaunchMedium(const LinearArgs& linear, int num_sms, cudaStream_t stream) {
  for (int first = 0; first < linear.num_tokens; first += kMediumTokens) {
    LinearArgs part = linear;
    part.num_tokens =
        linear.num_tokens - first < kMediumTokens ? linear.num_tokens - first : kMediumTokens;
    part.x += first * linear.x_stride;
    if (part.product != nullptr) {
      part.product += first * linear.product_stride;
    }
    for (int p = 0; p < linear.num_parts; ++p) {
      part.parts[p].y += first * linear.parts[p].y_stride;
    }
    // Few rows are for 4-bit weights; others take the next wider kernel.
    constexpr int kFewest = kFormat == Format::kW4 || kFormat == Format::kNf4 ? 8 : 16;
    const int error =
        part.num_tokens <= kFewest
            ? LaunchMediumTokens<kFormat, kGrid, kFineScales, kFewest>(part, num_sms, stream)
        : part.num_tokens <= 16
            ? LaunchMediumTokens<kFormat, kGrid, kFineScales, 16>(part, num_sms, stream)
            : LaunchMediumTokens<kFormat, kGrid, kFineScales, 32>(part, num_sms, stream);
    if (error != 0) {
      return error;
    }
  }
  return 0;
}

int LaunchMediumW4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumW8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumNf4(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumFp8(const LinearArgs& args, int num_sms, cudaStream_t stream);
int LaunchMediumF16(const LinearArgs& args, int num_sms, cudaStream_t stream);

}  // namespace nibble::cuda
