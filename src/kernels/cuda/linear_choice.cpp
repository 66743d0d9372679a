#include "kernels/cuda/linear_choice.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/cuda/linear_a8.h"

namespace nibble::cuda {

bool HasBigBlocks(const CudaDevice& device) {
  return device.compute_capability() >= 90 && device.compute_capability() < 120;
}

const char* Name(LinearVariant variant) {
  switch (variant) {
    case LinearVariant::kSmall:
      return "small";
    case LinearVariant::kMedium:
      return "medium";
    case LinearVariant::kLarge:
      return "large";
    case LinearVariant::kTile:
      return "tile";
  }
  return "";
}

SmallShape ShapeOfSmall(const LinearArgs& args, int num_sms) {
  SmallShape shape;
  const bool gated = args.epilogue == Epilogue::kSwiGlu;
  for (int p = 0; p < args.num_parts; ++p) {
    const int tiles = args.parts[p].num_tiles;
    shape.first_pair[p + 1] = gated ? tiles : shape.first_pair[p] + (tiles + 1) / 2;
  }
  const int pairs = shape.first_pair[args.num_parts];
  shape.num_blocks = std::min(pairs, num_sms);
  shape.pairs_per_block = pairs / shape.num_blocks;
  shape.extra_pairs = pairs % shape.num_blocks;
  shape.x_pitch = args.layout.num_units * args.layout.unit_cols * 2 + 16;  // rows meet all banks
  const int kept = std::min(kSmallPairs, (pairs - 1) / shape.num_blocks + 1);
  constexpr int kFactorBytes = kSmallPairs * kPairRows * 4;
  const int before_bytes = args.epilogue == Epilogue::kAdd ? kFactorBytes * args.num_tokens : 0;
  const int sum_bytes = kept * 2 * kNumSlices * kTileRows * args.num_tokens * 4;
  const int x_bytes = args.num_tokens * shape.x_pitch + 16;  // and zeros for tokens that miss
  const int table_bytes = TableBytes(args.layout.format);
  const int rest = table_bytes + kFactorBytes + before_bytes + sum_bytes + x_bytes;
  const int stage = 2 * kNumSlices * args.layout.unit_bytes;
  constexpr int kBarrierBytes = 16;    // of a stage
  constexpr int kWanted = 104 * 1024;  // in flight; more gained nothing
  const int most = kSmallSmem - rest;
  shape.num_stages = std::min((kWanted - 1) / stage + 1, most / (stage + kBarrierBytes));
  if (shape.num_stages < 2) {
    shape.num_stages = 0;
  }
  shape.factors_at = shape.num_stages * stage;
  shape.before_at = shape.factors_at + kFactorBytes;
  shape.sums_at = shape.before_at + before_bytes;
  shape.x_at = shape.sums_at + sum_bytes;
  shape.barriers_at = shape.x_at + x_bytes;
  shape.size_bytes = table_bytes + shape.barriers_at + shape.num_stages * kBarrierBytes;
  return shape;
}

LargeShape ShapeOfLarge(const LinearArgs& args, int num_sms) {
  int blocks = 0;
  for (int p = 0; p < (args.epilogue == Epilogue::kSwiGlu ? 1 : args.num_parts); ++p) {
    blocks += LargeBlocks(args, p);
  }
  const auto with = [&](int tokens) {
    LargeShape shape{.tokens = tokens};
    shape.tiles = (blocks + 1) / 2 * ((args.num_tokens + tokens - 1) / tokens);
    shape.pairs = std::min(shape.tiles, num_sms / 2);
    const int whole = (shape.tiles - 1) / shape.pairs + 1;
    const double equal = static_cast<double>(shape.tiles) / shape.pairs;
    constexpr double kHandingOver = 0.12;  // of a round
    constexpr double kWorthIt = 0.95;      // tiles in turn share weights and tokens in the L2 cache
    shape.splits = args.shared != nullptr && equal + kHandingOver < kWorthIt * whole;
    shape.rounds = shape.splits ? equal + kHandingOver : whole;
    return shape;
  };
  // A round of 128 tokens takes half as long again as one of 64; those leave fewer SMs idle.
  const LargeShape wide = with(128);
  const LargeShape narrow = with(64);
  return 1.46 * wide.rounds <= narrow.rounds ? wide : narrow;
}

A8Shape ShapeOfA8(const LinearArgs& args, int num_sms, int tile_tokens) {
  int blocks = 0;
  for (int p = 0; p < (args.epilogue == Epilogue::kSwiGlu ? 1 : args.num_parts); ++p) {
    blocks += LargeBlocks(args, p);
  }
  A8Shape best;
  double best_time = 0.0;
  // Of a round, in those of 128 tokens: a block decodes its weights whatever its tokens are.
  for (const auto& [tokens, time] : {std::pair{16, 0.4}, {32, 0.42}, {64, 0.6}, {128, 1.0}}) {
    A8Shape shape{.tokens = tokens};
    shape.tiles = (blocks + 1) / 2 * ((args.num_tokens + tokens - 1) / tokens);
    shape.pairs = std::min(shape.tiles, num_sms / 2);
    const double all = time * ((shape.tiles - 1) / shape.pairs + 1);
    if (tile_tokens == 0 ? best_time == 0.0 || all <= best_time : tile_tokens == tokens) {
      best = shape;
      best_time = all;
    }
  }
  return best;
}

std::size_t LinearSharedBytes(int num_sms) {
  NIBBLE_CHECK(static_cast<std::size_t>(num_sms) * sizeof(int) <= kSharedFlagBytes,
               "more SMs than flags");
  return kSharedFlagBytes + static_cast<std::size_t>(num_sms) * kSharedSumBytes;
}

namespace {

// Microseconds of either kernel, lines through what an H100 measured (docs/kernels/cuda.md).
double MediumTime(const LinearArgs& args) {
  std::size_t bytes = 0;
  for (int p = 0; p < args.num_parts; ++p) {
    bytes += static_cast<std::size_t>(args.parts[p].num_tiles) * args.layout.tile_bytes();
  }
  const int passes = (args.num_tokens + kMediumTokens - 1) / kMediumTokens;
  return passes * (4.0 + static_cast<double>(bytes) / 1.9e6);
}
double LargeTime(const LinearArgs& args, int num_sms) {
  const LargeShape shape = ShapeOfLarge(args, num_sms);
  return 6.0 + shape.rounds * args.layout.cols * (shape.tokens == 128 ? 5.9e-3 : 3.8e-3);
}

}  // namespace

LinearVariant ChooseLinear(const CudaDevice& device, const LinearArgs& args) {
  const bool wgmma = device.compute_capability() == 90 && args.layout.cols % 8 == 0;
  if (args.residual != nullptr) {  // no other norms its input
    return LinearVariant::kSmall;
  }
  if (HasBigBlocks(device) && args.num_tokens <= kMaxSmallTokens) {
    const SmallShape shape = ShapeOfSmall(args, device.num_sms());
    // Every block fetches all of x: worth it for many outputs, or little x.
    constexpr int kLittle = 12 * 1024;
    if (shape.num_stages > 0 &&
        (!wgmma || shape.pairs_per_block >= 2 || args.num_tokens * args.layout.cols <= kLittle)) {
      return LinearVariant::kSmall;
    }
  }
  if (wgmma) {
    return args.num_tokens <= kMediumTokens || MediumTime(args) <= LargeTime(args, device.num_sms())
               ? LinearVariant::kMedium
               : LinearVariant::kLarge;
  }
  return LinearVariant::kTile;
}

int LaunchLinear(CudaDevice& device, const LinearArgs& args) {
  switch (ChooseLinear(device, args)) {
    case LinearVariant::kSmall:
      return LaunchLinearSmall(args, device.num_sms(), device.stream());
    case LinearVariant::kMedium:
      return LaunchLinearMedium(args, device.num_sms(), device.stream());
    case LinearVariant::kLarge:
      return LaunchLinearLarge(args, device.num_sms(), device.stream());
    case LinearVariant::kTile:
      break;
  }
  return LaunchLinearTile(args, device.stream());
}

}  // namespace nibble::cuda
