// grid    = the one of solve/grid.h's candidates with the least sum over i of curvature_i error_i^2
// e_i     = w_i - rounded(t_i),  t_i = w_i + moved_i + sum over j < i of ratios_ji e_j
//   SearchGrids: a warp a group of a row. A lane adds the errors of its own candidates, in order,
//   so that the sums are those of GridSearch::Best. About 70 roundings a value. RoundBlock: eight
//   lanes a row, eight positions each; two broadcasts a position. Reads 4 bytes of weight and 4 of
//   `moved` a value, writes 5; 64 x 64 multiply-adds a row.

#include <cmath>
#include <type_traits>

#include "kernels/cuda/gptq_kernel.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/grid_kernel.h"
#include "tensor/float16.h"

namespace nibble::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffU;

// --- one grid ---

struct Grid {
  float scale = 0.0F;
  float inverse = 0.0F;  // 1 / scale, or 0 where scale is 0
  float zero = 0.0F;
};

struct Rounded {
  float value;
  float code;
};

// To nearest even for |x| < 2^22, as on the CPU.
__device__ __forceinline__ float RoundNearest(float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

__device__ __forceinline__ int RankOf(const CodeTable& table, int bits, float value) {
  const int word = __float_as_int(value);
  const int key = word ^ ((word >> 31) & 0x7fffffff);
  int rank = 0;
  for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
    rank += key > table.last_key[rank + step - 1] ? step : 0;
  }
  return rank;
}

template <bool kIsCodebook>
__device__ __forceinline__ Rounded RoundTo(const GridRules& rules, const CodeTable& table,
                                           const Grid& grid, float value) {
  if constexpr (kIsCodebook) {
    const int rank = RankOf(table, rules.bits, value * grid.inverse);
    return {table.values[rank] * grid.scale, static_cast<float>(table.codes[rank])};
  } else {
    const float low = -grid.zero;
    const float high = rules.top - grid.zero;
    const float code = RoundNearest(fminf(fmaxf(value * grid.inverse, low), high));
    return {code * grid.scale, code + grid.zero};
  }
}

// ScaleOnGrid of codec/quantized_tensor.h.
__device__ float ScaleByRule(const GridRules& rules, float scale) {
  switch (rules.rule) {
    case ScaleRule::kPowersOfTwo: {
      if (scale <= 0.0F) {
        return 1.0F;
      }
      int exponent = 0;
      const float fraction = frexpf(scale, &exponent);  // 0.5 to 1
      constexpr float kMiddle = 0.70710678F;
      return ldexpf(1.0F, max(-127, min(127, fraction < kMiddle ? exponent - 1 : exponent)));
    }
    case ScaleRule::kE4M3: {
      constexpr int kBits = 8;
      return rules.e4m3->values[RankOf(*rules.e4m3, kBits, fmaxf(scale, 0.0F) * rules.divisor)] /
             rules.divisor;
    }
    case ScaleRule::kAny:
      break;
  }
  return scale;
}

__device__ void SetScale(const GridRules& rules, float scale, Grid& grid) {
  scale = ScaleByRule(rules, scale);
  switch (rules.storage) {
    case ScaleStorage::kF16:
      scale = F16ToFloat(FloatToF16(scale));
      break;
    case ScaleStorage::kBF16:
      scale = BF16ToFloat(FloatToBF16(scale));
      break;
    case ScaleStorage::kF32:
      break;
  }
  grid.scale = scale;
  grid.inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
}

// PowerOfTwoScale of codec/encode.h.
__device__ float PowerOfTwoScale(float absmax, float largest) {
  if (absmax == 0.0F) {
    return 1.0F;
  }
  constexpr float kUp = 1.75F;
  const int exponent = ilogbf(absmax);
  const int up = ldexpf(absmax, -exponent) >= kUp ? 1 : 0;
  return ldexpf(1.0F, max(-127, min(127, exponent + up - ilogbf(largest))));
}

// Of the range [minimum, maximum] times `factor`, upside down if that is negative.
template <bool kIsCodebook>
__device__ Grid GridOf(const GridRules& rules, float minimum, float maximum, float factor) {
  Grid grid;
  const float absmax = -minimum < maximum ? maximum : -minimum;  // std::max, to the sign of 0
  if constexpr (kIsCodebook) {
    SetScale(rules,
             rules.rule == ScaleRule::kPowersOfTwo ? PowerOfTwoScale(absmax * factor, rules.largest)
                                                   : absmax * factor / rules.largest,
             grid);
  } else if (!rules.has_zero_points) {
    SetScale(rules, absmax * 2.0F * factor / rules.top, grid);
    grid.zero = rules.middle;
  } else {
    SetScale(rules, (maximum - minimum) * factor / rules.top, grid);
    if (grid.scale != 0.0F) {
      grid.zero = fminf(fmaxf(RoundNearest(-minimum * factor / grid.scale), 0.0F), rules.top);
    }
  }
  return grid;
}

// --- the search ---

constexpr int kSearchWarps = 4;
constexpr int kStaged = 128;  // values of a group in shared memory

// Candidate 0 is the range itself; then the factors, widest first, each with both signs.
__device__ __forceinline__ float FactorOf(int candidate, bool both_signs) {
  if (candidate == 0) {
    return 1.0F;
  }
  const int step = both_signs ? (candidate - 1) / 2 : candidate - 1;
  const float factor = kGridWidest - kGridStep * static_cast<float>(step);
  return both_signs && candidate % 2 == 0 ? -factor : factor;
}

// The values of one group and what their errors count, staged by the warp that walks over them.
class Values {
 public:
  __device__ Values(const SearchGridsArgs& args, std::int64_t row, int group, float2* staged)
      : args_(args),
        row_(row * args.n),
        begin_(static_cast<std::int64_t>(group) * args.size),
        staged_(staged) {}

  // body(value, curvature) for each, in order, by all lanes alike.
  template <typename Body>
  __device__ void ForEach(const Body& body) {
    for (int base = 0; base < args_.size; base += kStaged) {
      const int count = min(kStaged, args_.size - base);
      Stage(base, count);
      for (int i = 0; i < count; ++i) {
        const float2 pair = staged_[i];
        body(pair.x, pair.y);
      }
    }
  }

 private:
  __device__ void Stage(int base, int count) {
    if (base == base_) {
      return;
    }
    base_ = base;
    __syncwarp();
    for (int i = static_cast<int>(threadIdx.x) % 32; i < count; i += 32) {
      const std::int64_t at = begin_ + base + i;
      float value = args_.weights[row_ + (args_.columns == nullptr ? at : args_.columns[at])];
      if (args_.moved != nullptr) {
        value = args_.moved[row_ + at] + value;
      }
      staged_[i] = make_float2(value, args_.curvature[at]);
    }
    __syncwarp();
  }

  const SearchGridsArgs& args_;
  std::int64_t row_, begin_;
  float2* staged_;
  int base_ = -1;
};

template <bool kIsCodebook>
__device__ Grid BestGrid(const GridRules& rules, const CodeTable& table, Values& values) {
  float minimum = 0.0F;
  float maximum = 0.0F;
  values.ForEach([&](float x, float) {
    minimum = x < minimum ? x : minimum;
    maximum = maximum < x ? x : maximum;
  });
  Grid best = GridOf<kIsCodebook>(rules, minimum, maximum, 1.0F);
  if (!rules.search) {
    return best;
  }
  const auto error_of = [&](const Grid& grid) {
    float sum = 0.0F;
    values.ForEach([&](float x, float curvature) {
      const float error = x - RoundTo<kIsCodebook>(rules, table, grid, x).value;
      sum += curvature * (error * error);
    });
    return sum;
  };
  // The least error, and of equal ones the first, as if one thread had gone through them in order.
  const int num_candidates = 1 + kGridSteps * (rules.both_signs ? 2 : 1);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float least = 0.0F;
  int chosen = num_candidates;
  for (int first = 0; first < num_candidates; first += 32) {
    const int candidate = min(first + lane, num_candidates - 1);
    const Grid grid =
        GridOf<kIsCodebook>(rules, minimum, maximum, FactorOf(candidate, rules.both_signs));
    const float error = error_of(grid);
    const bool counts = first + lane < num_candidates && (candidate == 0 || grid.scale != 0.0F);
    if (counts && (chosen == num_candidates || error < least)) {
      least = error;
      chosen = candidate;
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other_least = __shfl_xor_sync(kAllLanes, least, distance);
    const int other = __shfl_xor_sync(kAllLanes, chosen, distance);
    const bool better =
        other != num_candidates && (chosen == num_candidates || other_least < least ||
                                    (other_least == least && other < chosen));
    least = better ? other_least : least;
    chosen = better ? other : chosen;
  }
  best = GridOf<kIsCodebook>(rules, minimum, maximum, FactorOf(chosen, rules.both_signs));
  for (int round = 0; round < kGridRefinements; ++round) {
    float product = 0.0F;
    float square = 0.0F;
    values.ForEach([&](float x, float curvature) {
      const float unit = RoundTo<kIsCodebook>(rules, table, best, x).value * best.inverse;
      product += curvature * x * unit;
      square += curvature * unit * unit;
    });
    Grid grid = best;
    if (square > 0.0F) {
      SetScale(rules, product / square, grid);
    }
    const float error = error_of(grid);
    if (error < least && grid.scale != 0.0F) {
      least = error;
      best = grid;
    }
  }
  return best;
}

template <bool kIsCodebook>
__global__ __launch_bounds__(32 * kSearchWarps) void SearchGridsKernel(
    const __grid_constant__ SearchGridsArgs args) {
  __shared__ CodeTable table;
  __shared__ float2 staged[kSearchWarps][kStaged];
  WaitForPrevious();
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kIsCodebook) {
    for (int i = thread; i < CodeTable::kMaxCodes; i += 32 * kSearchWarps) {
      table.last_key[i] = args.rules.table->last_key[i];
      table.values[i] = args.rules.table->values[i];
      table.codes[i] = args.rules.table->codes[i];
    }
    __syncthreads();
  }
  const int warp = thread / 32;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kSearchWarps + warp;
  const std::int64_t row = item / args.num_groups;
  if (row >= args.rows) {
    return;
  }
  const int group = static_cast<int>(item % args.num_groups);
  Grid grid;
  if (args.rules.is_fixed) {
    grid.zero = args.rules.fixed_zero;
    SetScale(args.rules, args.rules.fixed_scale, grid);
  } else {
    Values values(args, row, group, staged[warp]);
    grid = BestGrid<kIsCodebook>(args.rules, table, values);
  }
  if (thread % 32 == 0) {
    const std::int64_t to = row * args.groups_per_row + args.first_group + group;
    args.scales[to] = grid.scale;
    args.zeros[to] = grid.zero;
  }
}

// --- the sweep ---

constexpr int kRowLanes = 8;
constexpr int kHalf = kSweepBlock / 2;
constexpr int kOfLane = kHalf / kRowLanes;  // positions of a lane in each half of a block
constexpr int kRoundThreads = 128;
constexpr int kRoundRows = kRoundThreads / kRowLanes;

// Register k of a lane is this position of the block: four neighbours in each half, so that the
// lanes of a row read their ratios from 128 bytes in a row.
__device__ __forceinline__ int PositionOf(int lane, int k) {
  return k / kOfLane * kHalf + lane * kOfLane + k % kOfLane;
}

template <bool kIsCodebook>
__global__ __launch_bounds__(kRoundThreads) void RoundBlockKernel(
    const __grid_constant__ RoundBlockArgs args) {
  __shared__ CodeTable table;
  __shared__ float4 ratios[kSweepBlock][kSweepBlock / 4];
  __shared__ double curvature[kSweepBlock];
  __shared__ std::int32_t columns[kSweepBlock];
  WaitForPrevious();
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kIsCodebook) {
    for (int i = thread; i < CodeTable::kMaxCodes; i += kRoundThreads) {
      table.last_key[i] = args.rules.table->last_key[i];
      table.values[i] = args.rules.table->values[i];
      table.codes[i] = args.rules.table->codes[i];
    }
  }
  for (int i = thread; i < kSweepBlock * kSweepBlock; i += kRoundThreads) {
    const int from = i / kSweepBlock;
    const int to = i % kSweepBlock;
    const bool inside = from < args.count && to < args.count;
    reinterpret_cast<float*>(ratios)[i] =
        inside ? args.ratios[(args.at + from) * args.n + args.at + to] : 0.0F;
  }
  for (int i = thread; i < kSweepBlock; i += kRoundThreads) {
    curvature[i] = i < args.count ? args.curvature[args.at + i] : 0.0;
    columns[i] = i < args.count ? args.order[args.at + i] : 0;
  }
  __syncthreads();

  const int lane = thread % kRowLanes;
  const std::int64_t own_row =
      static_cast<std::int64_t>(blockIdx.x) * kRoundRows + thread / kRowLanes;
  const bool is_row = own_row < args.rows;  // the others work along, as lanes meet
  const std::int64_t row = is_row ? own_row : args.rows - 1;
  const float* moved = args.moved + row * args.n + args.at;
  const float* weights = args.weights + row * args.n;
  const float* scales = args.scales + row * args.groups_per_row;
  const float* zeros = args.zeros + row * args.groups_per_row;
  float w[2 * kOfLane];
  float sum[2 * kOfLane];
  float errors[2 * kOfLane];
  float codes[2 * kOfLane];
#pragma unroll
  for (int k = 0; k < 2 * kOfLane; ++k) {
    const int i = PositionOf(lane, k);
    w[k] = i < args.count ? weights[columns[i]] : 0.0F;
    sum[k] = i < args.count ? moved[i] : 0.0F;
    errors[k] = 0.0F;
    codes[k] = 0.0F;
  }
  double error = 0.0;
  int group = -1;
  Grid grid;
  // Which register a position is in is known at compile time, which lane is not.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    for (int owner = 0; owner < kRowLanes; ++owner) {
#pragma unroll
      for (int r = 0; r < kOfLane; ++r) {
        const int i = half * kHalf + owner * kOfLane + r;
        const int k = half * kOfLane + r;
        if (i < args.count) {
          const int group_here = columns[i] / args.group_size;
          if (group_here != group) {
            group = group_here;
            grid.scale = scales[group];
            grid.inverse = grid.scale == 0.0F ? 0.0F : 1.0F / grid.scale;
            grid.zero = zeros[group];
          }
          const float t = __shfl_sync(kAllLanes, sum[k] + w[k], owner, kRowLanes);
          const float weight = __shfl_sync(kAllLanes, w[k], owner, kRowLanes);
          const Rounded rounded = RoundTo<kIsCodebook>(args.rules, table, grid, t);
          const float e = weight - rounded.value;
          const auto d = static_cast<double>(t - rounded.value);
          error += curvature[i] * d * d;
          if (lane == owner) {
            errors[k] = e;
            codes[k] = rounded.code;
          }
          const auto add = [&](float4 ratio, int first) {
            sum[first] = fmaf(ratio.x, e, sum[first]);
            sum[first + 1] = fmaf(ratio.y, e, sum[first + 1]);
            sum[first + 2] = fmaf(ratio.z, e, sum[first + 2]);
            sum[first + 3] = fmaf(ratio.w, e, sum[first + 3]);
          };
          if (half == 0) {
            add(ratios[i][lane], 0);
          }
          add(ratios[i][kRowLanes + lane], kOfLane);
        }
      }
    }
  }
  if (!is_row) {
    return;
  }
  float* errors_out = args.errors + row * args.n + args.at;
  std::uint8_t* codes_out = args.codes + row * args.n;
#pragma unroll
  for (int k = 0; k < 2 * kOfLane; ++k) {
    const int i = PositionOf(lane, k);
    if (i < args.count) {
      errors_out[i] = errors[k];
      codes_out[columns[i]] = static_cast<std::uint8_t>(codes[k]);
    }
  }
  if (lane == 0) {
    args.row_errors[row] += error;
  }
}

}  // namespace

int LaunchSearchGrids(const SearchGridsArgs& args, CUstream_st* stream) {
  const std::int64_t items = static_cast<std::int64_t>(args.rows) * args.num_groups;
  const dim3 grid(static_cast<unsigned>((items + kSearchWarps - 1) / kSearchWarps));
  return Launch(args.rules.table != nullptr ? SearchGridsKernel<true> : SearchGridsKernel<false>,
                grid, 32 * kSearchWarps, 0, stream, args);
}

int LaunchRoundBlock(const RoundBlockArgs& args, CUstream_st* stream) {
  const dim3 grid(static_cast<unsigned>((args.rows + kRoundRows - 1) / kRoundRows));
  return Launch(args.rules.table != nullptr ? RoundBlockKernel<true> : RoundBlockKernel<false>,
                grid, kRoundThreads, 0, stream, args);
}

}  // namespace nibble::cuda
