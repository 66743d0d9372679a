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

SmallSplit SplitOfSmall(const LinearArgs& args, int num_sms) {
  SmallSplit split;
  const bool gated = args.epilogue == Epilogue::kSwiGlu;
  for (int p = 0; p < args.num_parts; ++p) {
    const int tiles = args.parts[p].num_tiles;
    split.first_pair[p + 1] = gated ? tiles : split.first_pair[p] + (tiles + 1) / 2;
  }
  const int pairs = split.first_pair[args.num_parts];
  split.num_blocks = std::min(pairs, num_sms);
  split.pairs_per_block = pairs / split.num_blocks;
  split.extra_pairs = pairs % split.num_blocks;
  split.x_pitch = args.layout.num_units * args.layout.unit_cols * 2 + 16;  // rows meet all banks
  return split;
}

SmallMemory MemoryOfSmall(std::span<const LinearArgs> chain, int num_sms) {
  constexpr int kFactorBytes = kSmallPairs * kPairRows * 4;
  const LinearArgs& first = chain.front();
  int before_bytes = 0;
  int sum_bytes = 0;
  int x_bytes = 0;
  bool reads_x_once = true;
  for (const LinearArgs& args : chain) {
    const SmallSplit split = SplitOfSmall(args, num_sms);
    const int most = split.pairs_per_block + (split.extra_pairs > 0 ? 1 : 0);
    const int kept = std::min(kSmallPairs, most);
    if (args.epilogue == Epilogue::kAdd) {
      before_bytes = kFactorBytes * args.num_tokens;
    }
    sum_bytes = std::max(sum_bytes, (kept * kSmallSums * args.num_tokens * 4 + 127) / 128 * 128);
    x_bytes = std::max(x_bytes, args.num_tokens * split.x_pitch);
    reads_x_once = reads_x_once && most <= kSmallPairs;
  }
  const int stage = 2 * kNumSlices * first.layout.unit_bytes;
  constexpr int kBarrierBytes = 16;    // of a stage
  constexpr int kWanted = 104 * 1024;  // in flight; more gained nothing
  constexpr int kEnough = 80 * 1024;   // with the wide table, which gains more than the rest would
  const auto stages_of = [&](int bytes) { return (bytes - 1) / stage + 1; };
  const auto stages_beside = [&](int bytes) {
    return (kSmallSmem - kFactorBytes - before_bytes - bytes) / (stage + kBarrierBytes);
  };
  SmallMemory memory;
  int table_bytes = TableBytes(first.layout.format);
  int rest = sum_bytes + x_bytes;
  const auto has_room = [&](int bytes) {
    return stages_beside(2 * table_bytes + bytes) >= stages_of(kEnough);
  };
  if (table_bytes > 0) {
    const int over = std::max(sum_bytes, x_bytes);
    memory.sums_over_x = !has_room(rest) && reads_x_once && has_room(over);
    rest = memory.sums_over_x ? over : rest;
    memory.has_wide_table = has_room(rest);
    table_bytes *= memory.has_wide_table ? 2 : 1;
  }
  memory.num_stages = std::min(stages_of(kWanted), stages_beside(table_bytes + rest));
  if (memory.num_stages < 2) {
    memory.num_stages = 0;
  }
  memory.factors_at = memory.num_stages * stage;
  memory.before_at = memory.factors_at + kFactorBytes;
  memory.sums_at = memory.before_at + before_bytes;
  memory.x_at = memory.sums_at + (memory.sums_over_x ? 0 : sum_bytes);
  memory.barriers_at = memory.sums_at + rest;
  memory.size_bytes = table_bytes + memory.barriers_at + memory.num_stages * kBarrierBytes;
  return memory;
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
  NIBBLE_CHECK(static_cast<std::size_t>(num_sms) * sizeof(int) <= kSharedMeetingAt,
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

// Every block of small fetches all of x. For weights of 4 bits medium has a tile of 8 tokens, and
// is faster from so many values of x on, whatever else speaks for small.
bool MediumIsFaster(const LinearArgs& args) {
  const bool four_bits = args.layout.format == Format::kW4 || args.layout.format == Format::kNf4;
  return four_bits && args.num_tokens * args.layout.cols > 18 * 1024;
}

// To norm its input, medium needs all of its blocks on the card: they wait for each other.
bool MediumNorms(const CudaDevice& device) { return device.num_sms() / 2 <= MediumPairs(); }

}  // namespace

LinearVariant ChooseLinear(const CudaDevice& device, const LinearArgs& args) {
  const bool wgmma = device.compute_capability() == 90 && args.layout.cols % 8 == 0;
  if (HasBigBlocks(device) && args.num_tokens <= kMaxSmallTokens) {
    // Worth it for many outputs, or little x.
    constexpr int kLittle = 12 * 1024;
    const bool has_pairs = SplitOfSmall(args, device.num_sms()).pairs_per_block >= 2;
    if (MemoryOfSmall({&args, 1}, device.num_sms()).num_stages > 0 &&
        (!wgmma || (has_pairs && !MediumIsFaster(args)) ||
         args.num_tokens * args.layout.cols <= kLittle ||
         (args.residual != nullptr && !MediumNorms(device)))) {
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

bool HasChains(const CudaDevice& device, const LinearArgs& args) {
  // With few rows, what a launch costs weighs more than how fast its kernel is.
  constexpr int kFew = 2;
  constexpr int kLittle = 36 * 1024;
  return HasBigBlocks(device) && args.num_tokens <= kMaxSmallTokens &&
         MemoryOfSmall({&args, 1}, device.num_sms()).num_stages > 0 &&
         (args.num_tokens <= kFew ||
          (args.num_tokens * args.layout.cols <= kLittle && !MediumIsFaster(args)) ||
          ChooseLinear(device, args) == LinearVariant::kSmall);
}

bool NormsInput(const CudaDevice& device, const LinearArgs& args) {
  if (args.layout.cols > kMaxNormWidth) {
    return false;
  }
  return HasChains(device, args) ||
         (args.num_tokens <= kMediumTokens &&
          ChooseLinear(device, args) == LinearVariant::kMedium && MediumNorms(device));
}

bool IsChain(std::span<const LinearArgs> products, int num_sms) {
  const LinearArgs& first = products.front();
  return products.size() <= kMaxChain &&
         std::ranges::all_of(products,
                             [&](const LinearArgs& args) {
                               return args.num_tokens == first.num_tokens &&
                                      SameUnits(args.layout, first.layout);
                             }) &&
         MemoryOfSmall(products, num_sms).num_stages > 0;
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
