// One block a row: logits to a token. The steps and their order are those of kernels/sampling.h;
// the draw is a pure function of the row, the seed, the choice and the position.
//   nothing but temperature and min_p: the draw walks the ids in order
//   top_k, top_p: the survivors in falling order (ties by id); more than 1024 of them: in order of
//   ids
// Counts and masses are integers (masses with 2^40 for the largest weight), so that the order of
// atomics does not matter. Reads a row from the L2 cache 2 to 8 times; 33 MB for 64 rows of 128 k.

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sampling_kernel.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 1024;       // ids whose weights one warp sums
constexpr int kMaxTiles = 2048;   // vocabularies up to 2 million
constexpr int kSurvivors = 1024;  // that are sorted
constexpr float kLowest = -INFINITY;
constexpr float kMinTemperature = 1e-5F;

__device__ __forceinline__ float Clean(float x) {
  return x != x ? kLowest : fminf(x, 3.402823466e38F);
}

/// Larger floats have larger keys.
__device__ __forceinline__ std::uint32_t KeyOf(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float FromKey(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

/// Philox4x32-10, as base/random.h: uniform in [0, 1) with 24 bits.
__device__ float Uniform(const SampleRecord& row) {
  std::uint32_t key[2] = {row.seed[0], row.seed[1]};
  std::uint32_t c[4] = {row.position[0], row.position[1], row.choice, 0};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = 0xD2511F53ULL * c[0];
    const std::uint64_t b = 0xCD9E8D57ULL * c[2];
    const std::uint32_t next[4] = {
        static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<std::uint32_t>(a)};
    for (int i = 0; i < 4; ++i) {
      c[i] = next[i];
    }
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return static_cast<float>(c[0] >> 8) * 0x1p-24F;
}

struct Shared {
  std::uint64_t sorted[kSurvivors];  // ~key above id
  union {
    float tile_sum[kMaxTiles];
    std::uint64_t tile_mass[kMaxTiles];
  };
  std::uint64_t mass[256];
  std::uint32_t count[256];
  float warp_value[kWarps];
  std::int32_t warp_id[kWarps];
  double scan;
  std::uint32_t threshold;
  std::uint32_t wanted;
  std::uint64_t wanted_mass;
  std::int32_t num_survivors;
  std::int32_t chosen;
};

class Row {
 public:
  __device__ Row(const SampleArgs& args, int index, Shared& shared)
      : x_(args.logits + index * args.logits_stride),
        vocab_(args.vocab),
        row_(args.records[index]),
        shared_(shared) {}

  __device__ void Run(const SampleArgs& args, SampleRecordResult& result) {
    Adjust(args);
    const bool scoring = row_.target >= 0 && row_.target < vocab_;
    const bool wants_logprobs = scoring || row_.num_top >= 0;
    const bool greedy = !(row_.temperature >= kMinTemperature);
    int best;
    ArgMax(max_, best);
    int token = best;
    if (scoring) {
      token = row_.target;
    } else if (!greedy && max_ != kLowest) {
      token = Draw();
    }
    if (threadIdx.x == 0) {
      if (row_.slot >= 0 && !scoring) {
        args.slot_tokens[row_.slot] = token;
      }
      result.token = token;
      result.logprob = 0.0F;
      result.rank = 0;
      result.num_top = 0;
    }
    if (wants_logprobs) {
      Score(token, result);
    }
  }

 private:
  __device__ void Adjust(const SampleArgs& args) {
    for (int i = static_cast<int>(threadIdx.x); i < row_.num_adjustments; i += kThreads) {
      const Adjustment& a = args.adjustments[row_.first_adjustment + i];
      float value = x_[a.token] + a.bias;
      if (a.seen != 0 && row_.repetition_penalty != 1.0F) {
        value = value > 0.0F ? value / row_.repetition_penalty : value * row_.repetition_penalty;
      }
      if (a.count > 0) {
        value -= row_.frequency_penalty * static_cast<float>(a.count);
        value -= row_.presence_penalty;
      }
      x_[a.token] = a.banned != 0 ? kLowest : value;
    }
    __syncthreads();
  }

  __device__ void ArgMax(float& max, int& best) {
    float value = kLowest;
    int id = vocab_;
    for (int i = static_cast<int>(threadIdx.x); i < vocab_; i += kThreads) {
      const float x = Clean(x_[i]);
      if (x > value || (x == value && i < id)) {
        value = x;
        id = i;
      }
    }
    const auto join = [&](float other, int other_id) {
      if (other > value || (other == value && other_id < id)) {
        value = other;
        id = other_id;
      }
    };
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      join(__shfl_xor_sync(0xffffffffU, value, lanes), __shfl_xor_sync(0xffffffffU, id, lanes));
    }
    if (threadIdx.x % 32 == 0) {
      shared_.warp_value[threadIdx.x / 32] = value;
      shared_.warp_id[threadIdx.x / 32] = id;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      join(shared_.warp_value[w], shared_.warp_id[w]);
    }
    __syncthreads();
    max = value;
    best = value == kLowest ? 0 : id;
  }

  __device__ float Weight(float x) const {
    const float w = expf((x - max_) * inverse_temperature_);
    return w < min_weight_ ? 0.0F : w;
  }
  __device__ std::uint64_t Mass(float x) const {
    return static_cast<std::uint64_t>(static_cast<double>(Weight(x)) * 0x1p40);
  }

  /// Calls body(id, x) for every id of the vocabulary, spread over the block.
  template <typename Body>
  __device__ void Each(Body body) {
    for (int i = static_cast<int>(threadIdx.x); i < vocab_; i += kThreads) {
      body(i, Clean(x_[i]));
    }
  }

  __device__ int Draw() {
    inverse_temperature_ = 1.0F / row_.temperature;
    min_weight_ = row_.min_p > 0.0F ? fminf(row_.min_p, 1.0F) : 0.0F;
    const auto uniform = static_cast<double>(Uniform(row_));
    const bool top_k = row_.top_k > 0 && row_.top_k < vocab_;
    const bool top_p = row_.top_p < 1.0F;
    if (!top_k && !top_p) {
      return DrawByIndex(uniform, 0);
    }
    std::uint32_t threshold = 0;
    if (top_k) {
      threshold = KthKey(static_cast<std::uint32_t>(row_.top_k));
    }
    if (top_p && (!top_k || row_.top_k > kSurvivors)) {
      threshold = MassKey(threshold);
    }
    Gather(threshold);
    if (shared_.num_survivors > kSurvivors) {
      return DrawByIndex(uniform, threshold);
    }
    Sort();
    // One thread walks the sorted survivors: top_k keeps the first k, top_p the shortest prefix
    // that has its share of what is left.
    if (threadIdx.x == 0) {
      int n = shared_.num_survivors;
      if (top_k) {
        n = min(n, row_.top_k);
      }
      const auto weight = [&](int i) {
        return static_cast<double>(
            Weight(FromKey(~static_cast<std::uint32_t>(shared_.sorted[i] >> 32))));
      };
      double all = 0.0;
      for (int i = 0; i < n; ++i) {
        all += weight(i);
      }
      double kept = all;
      if (top_p) {
        // Without top_k the share is of the whole vocabulary, whose mass MassKey left behind.
        const double total = top_k ? all : shared_.scan;
        const double enough = static_cast<double>(row_.top_p) * total;
        kept = 0.0;
        int keep = 0;
        do {
          kept += weight(keep++);
        } while (keep < n && kept < enough);
        n = keep;
      }
      const double goal = uniform * kept;
      double sum = 0.0;
      int chosen = 0;
      for (int i = 0; i < n; ++i) {
        sum += weight(i);
        if (sum > goal) {
          chosen = i;
          break;
        }
      }
      shared_.chosen = static_cast<std::int32_t>(shared_.sorted[chosen] & 0xffffffffU);
    }
    __syncthreads();
    const int chosen = shared_.chosen;
    __syncthreads();
    return chosen;
  }

  /// The key of the k-th largest logit: a byte at a time from the top.
  __device__ std::uint32_t KthKey(std::uint32_t k) {
    std::uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) {
        shared_.count[i] = 0;
      }
      __syncthreads();
      Each([&](int, float x) {
        const std::uint32_t key = KeyOf(x);
        if (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)) {
          atomicAdd(&shared_.count[key >> shift & 255U], 1U);
        }
      });
      __syncthreads();
      if (threadIdx.x == 0) {
        std::uint32_t left = k;
        int digit = 255;
        while (digit > 0 && shared_.count[digit] < left) {
          left -= shared_.count[digit--];
        }
        shared_.threshold = prefix | static_cast<std::uint32_t>(digit) << shift;
        shared_.wanted = left;
      }
      __syncthreads();
      prefix = shared_.threshold;
      k = shared_.wanted;
      __syncthreads();
    }
    return prefix;
  }

  /// The largest key such that keys at or above it hold top_p of the mass (of keys >= lowest);
  /// leaves the total in shared_.scan.
  __device__ std::uint32_t MassKey(std::uint32_t lowest) {
    std::uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) {
        shared_.mass[i] = 0;
      }
      __syncthreads();
      Each([&](int, float x) {
        const std::uint32_t key = KeyOf(x);
        if (key >= lowest && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8))) {
          if (const std::uint64_t mass = Mass(x); mass > 0) {
            atomicAdd(reinterpret_cast<unsigned long long*>(&shared_.mass[key >> shift & 255U]),
                      static_cast<unsigned long long>(mass));
          }
        }
      });
      __syncthreads();
      if (threadIdx.x == 0) {
        if (shift == 24) {
          std::uint64_t total = 0;
          for (int i = 0; i < 256; ++i) {
            total += shared_.mass[i];
          }
          shared_.scan = static_cast<double>(total) * 0x1p-40;
          shared_.wanted_mass = static_cast<std::uint64_t>(static_cast<double>(row_.top_p) *
                                                           static_cast<double>(total));
        }
        std::uint64_t left = shared_.wanted_mass;
        int digit = 255;
        while (digit > 0 && shared_.mass[digit] < left) {
          left -= shared_.mass[digit--];
        }
        shared_.threshold = prefix | static_cast<std::uint32_t>(digit) << shift;
        shared_.wanted_mass = left;
      }
      __syncthreads();
      prefix = shared_.threshold;
      __syncthreads();
    }
    // Fixed-point masses are rounded down: one digit of slack keeps a token at the very edge.
    return prefix > 0 ? prefix - 1 : 0;
  }

  /// All ids with a key of at least `threshold`, unsorted; num_survivors may exceed what is kept.
  __device__ void Gather(std::uint32_t threshold) {
    if (threadIdx.x == 0) {
      shared_.num_survivors = 0;
    }
    __syncthreads();
    Each([&](int id, float x) {
      const std::uint32_t key = KeyOf(x);
      if (key >= threshold) {
        const int at = atomicAdd(&shared_.num_survivors, 1);
        if (at < kSurvivors) {
          shared_.sorted[at] =
              static_cast<std::uint64_t>(~key) << 32 | static_cast<std::uint32_t>(id);
        }
      }
    });
    __syncthreads();
  }

  /// Bitonic, ascending: the largest logit first, ties by the lower id.
  __device__ void Sort() {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= shared_.num_survivors) {
      shared_.sorted[i] = ~std::uint64_t{0};
    }
    __syncthreads();
    for (int size = 2; size <= kSurvivors; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
        const int other = i ^ stride;
        if (other > i) {
          const std::uint64_t a = shared_.sorted[i];
          const std::uint64_t b = shared_.sorted[other];
          if ((a > b) == ((i & size) == 0)) {
            shared_.sorted[i] = b;
            shared_.sorted[other] = a;
          }
        }
        __syncthreads();
      }
    }
  }

  /// The draw in the order of ids over those with a key of at least `threshold`: first the tile,
  /// then the token.
  __device__ int DrawByIndex(double uniform, std::uint32_t threshold) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int tiles = (vocab_ + kTile - 1) / kTile;
    const auto weight = [&](int i) {
      if (i >= vocab_) {
        return 0.0F;
      }
      const float x = Clean(x_[i]);
      return KeyOf(x) >= threshold ? Weight(x) : 0.0F;
    };
    for (int tile = warp; tile < tiles; tile += kWarps) {
      float sum = 0.0F;
      for (int i = lane; i < kTile; i += 32) {
        sum += weight(tile * kTile + i);
      }
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(0xffffffffU, sum, lanes);
      }
      if (lane == 0) {
        shared_.tile_sum[tile] = sum;
      }
    }
    __syncthreads();
    if (warp == 0) {
      double total = 0.0;
      for (int tile = 0; tile < tiles; ++tile) {
        total += static_cast<double>(shared_.tile_sum[tile]);
      }
      const double goal = uniform * total;
      double before = 0.0;
      int tile = 0;
      for (; tile + 1 < tiles; ++tile) {
        const double next = before + static_cast<double>(shared_.tile_sum[tile]);
        if (next > goal) {
          break;
        }
        before = next;
      }
      // 32 ids at a time. If rounding leaves the goal unreached, the last id with a weight takes
      // it.
      int last = tile * kTile;
      int chosen = -1;
      for (int i = 0; i < kTile && chosen < 0; i += 32) {
        const float w = weight(tile * kTile + i + lane);
        double scan = static_cast<double>(w);
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
          const double other = __shfl_up_sync(0xffffffffU, scan, lanes);
          scan += lane >= lanes ? other : 0.0;
        }
        const unsigned reached = __ballot_sync(0xffffffffU, w > 0.0F && before + scan > goal);
        const unsigned weighty = __ballot_sync(0xffffffffU, w > 0.0F);
        if (reached != 0) {
          chosen = tile * kTile + i + __ffs(static_cast<int>(reached)) - 1;
        } else if (weighty != 0) {
          last = tile * kTile + i + 31 - __clz(static_cast<int>(weighty));
        }
        before += __shfl_sync(0xffffffffU, scan, 31);
      }
      if (lane == 0) {
        shared_.chosen = chosen >= 0 ? chosen : last;
      }
    }
    __syncthreads();
    const int chosen = shared_.chosen;
    __syncthreads();
    return chosen;
  }

  __device__ void Score(int token, SampleRecordResult& result) {
    double log_total = 0.0;
    if (max_ != kLowest) {
      float sum = 0.0F;
      Each([&](int, float x) { sum += expf(x - max_); });
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(0xffffffffU, sum, lanes);
      }
      if (threadIdx.x % 32 == 0) {
        shared_.warp_value[threadIdx.x / 32] = sum;
      }
      __syncthreads();
      double total = 0.0;
      for (int w = 0; w < kWarps; ++w) {
        total += static_cast<double>(shared_.warp_value[w]);
      }
      log_total = log(total);
      __syncthreads();
    }
    const auto logprob = [&](float x) {
      return x == kLowest ? kLowest
                          : static_cast<float>(static_cast<double>(x) - static_cast<double>(max_) -
                                               log_total);
    };
    const float logit = Clean(x_[token]);
    if (threadIdx.x == 0) {
      shared_.num_survivors = 0;
    }
    __syncthreads();
    int greater = 0;
    Each([&](int, float x) { greater += x > logit ? 1 : 0; });
    if (greater > 0) {
      atomicAdd(&shared_.num_survivors, greater);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      result.logprob = logprob(logit);
      result.rank = 1 + shared_.num_survivors;
    }
    __syncthreads();
    const int wanted = min(min(row_.num_top, kMaxTop), vocab_);
    if (wanted <= 0) {
      return;
    }
    const std::uint32_t threshold = KthKey(static_cast<std::uint32_t>(wanted));
    Gather(threshold);
    if (shared_.num_survivors > kSurvivors) {
      // More ties than are kept: those with the lowest ids, found one by one.
      KeepLowestTies(threshold);
    }
    Sort();
    if (static_cast<int>(threadIdx.x) < wanted) {
      const std::uint64_t entry = shared_.sorted[threadIdx.x];
      result.top_tokens[threadIdx.x] = static_cast<std::int32_t>(entry & 0xffffffffU);
      result.top_logprobs[threadIdx.x] = logprob(FromKey(~static_cast<std::uint32_t>(entry >> 32)));
    }
    if (threadIdx.x == 0) {
      result.num_top = wanted;
    }
    __syncthreads();
  }

  __device__ void KeepLowestTies(std::uint32_t threshold) {
    __syncthreads();  // all have seen how many there were
    if (threadIdx.x == 0) {
      int n = 0;
      for (int pass = 0; pass < 2; ++pass) {
        for (int i = 0; i < vocab_ && n < kMaxTop; ++i) {
          const std::uint32_t key = KeyOf(Clean(x_[i]));
          if (pass == 0 ? key > threshold : key == threshold) {
            shared_.sorted[n++] =
                static_cast<std::uint64_t>(~key) << 32 | static_cast<std::uint32_t>(i);
          }
        }
      }
      shared_.num_survivors = n;
    }
    __syncthreads();
  }

  float* x_;
  int vocab_;
  const SampleRecord& row_;
  Shared& shared_;
  float max_ = kLowest;
  float inverse_temperature_ = 1.0F;
  float min_weight_ = 0.0F;
};

__global__ __launch_bounds__(kThreads,
                             1) void SampleKernel(const __grid_constant__ SampleArgs args) {
  __shared__ Shared shared;
  LaunchDependents();
  WaitForPrevious();
  const int index = static_cast<int>(blockIdx.x);
  SampleRecordResult& result = (*args.results)[args.first_result + index];
  Row(args, index, shared).Run(args, result);
}

}  // namespace

int LaunchSample(const SampleArgs& args, CUstream_st* stream) {
  return Launch(SampleKernel, dim3(static_cast<unsigned>(args.rows)), kThreads, 0, stream, args);
}

}  // namespace nibble::cuda
