#pragma once

// From packed codes to fragments of mma.m16n8k16 (weights are the A operand), and nothing else:
// every kernel that multiplies weights decodes them here, so all of them multiply the same numbers.
//
//   w = fp16((code - zero) * scale)       symmetric and zero points; the difference is exact
//   w = fp16(code * scale + minimum)      minima, one rounding
//   w = fp16(fp16(value) * scale)         NF4, and FP8 (whose values fp16 holds) in groups
//   w = value                             FP8 with a scale a row
//
// A 4-bit code is the low bits of a subnormal fp16, code * 2^-24, and those of rows r + 8, which
// stand 4 bits higher, 2^-20: a mask, then one fused multiply-add by the scale, which is stored
// times 2^15. So weights come out times 2^-9 and 2^-5, and the factors of outputs make up for it
// (OutputUnit). A byte becomes 1024 + code by putting it under the exponent of 1024 (fp16 has 10
// bits of mantissa). Two codes of NF4 are looked up at once, in a table of 256 pairs that shared
// memory holds once for each lane: a load has no bank conflicts then, and two values take two
// integer instructions beside it. Byte permutes would take five, and those share the one pipe of
// half rate. docs/formats/cuda_weight.md.

#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

/// A place in shared memory for the table that decoding needs; null if it needs none.
template <Format kFormat>
__device__ __forceinline__ std::uint8_t* StaticTable() {
  if constexpr (TableBytes(kFormat) > 0) {
    __shared__ __align__(1024) std::uint8_t table[TableBytes(kFormat)];
    return table;
  }
  return nullptr;
}

/// Bytes from pair to pair of the table. Twice what the lanes take, a byte of codes is itself a
/// byte of the offset: one instruction instead of two, where there is the room.
constexpr int kTableStride = 128;
constexpr int kWideTableStride = 256;
constexpr int kWideTableBytes = 256 * kWideTableStride;

/// Fills the table, if there is one: the pairs of NF4 values as half2, [code of the first | code of
/// the second << 4][lane]. The caller synchronizes its threads before the first Fragment. By whole
/// warps.
template <Format kFormat, int kStride = kTableStride>
__device__ __forceinline__ void FillTable(std::uint8_t* table, int thread, int num_threads) {
  if constexpr (kFormat == Format::kNf4) {
    // fp16 of the table, two values a word.
    constexpr std::uint32_t kValues[8] = {0xb992bc00, 0xb652b833, 0xb1eab48d, 0x0000add4,
                                          0x31262d18, 0x356833e0, 0x3880370d, 0x3c0039c9};
    auto* const pairs = reinterpret_cast<std::uint32_t*>(table);
    const int lane = thread % 32;
    for (int second = thread / 32; second < 16; second += num_threads / 32) {
      std::uint32_t high = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        high = second / 2 == i ? kValues[i] : high;
      }
      high = second % 2 == 0 ? high << 16 : high & 0xffff0000;
#pragma unroll
      for (int first = 0; first < 16; ++first) {
        pairs[(second * 16 + first) * (kStride / 4) + lane] =
            high | (kValues[first / 2] >> (first % 2 * 16) & 0xffff);
      }
    }
  }
}

/// Scales (and zero points or minima) of a lane's two rows, r and r + 8, each twice for half2.
struct LaneScales {
  half2 scale[2];
  half2 extra[2];  // W8: -(1024 + zero), or the minimum; W4: as said at Fragment
};

template <Grid kGrid>
inline constexpr bool kHasExtras = kGrid == Grid::kZeroPoints || kGrid == Grid::kMinima;

/// Sums of rows r and r + 8 are in these units, beside the factors of the rows.
template <Format kFormat>
__device__ __forceinline__ constexpr float OutputUnit(int side) {
  return kFormat != Format::kW4 ? 1.0F : side == 0 ? 0x1p9F : 0x1p5F;
}

/// The values of a lane's two rows, of a pair a row of the tile.
__device__ __forceinline__ half2 LoadPair(const std::uint8_t* pairs, int lane) {
  return *reinterpret_cast<const half2*>(pairs + lane / 4 * 4);
}
template <Format kFormat, Grid kGrid>
__device__ __forceinline__ LaneScales Spread(half2 scale, half2 extra) {
  LaneScales out;
  out.scale[0] = __low2half2(scale);
  out.scale[1] = __high2half2(scale);
  if constexpr (kFormat == Format::kW4 && kGrid == Grid::kSymmetric) {
    extra = __hmul2(scale, AsHalf2(0x80808008));  // minus eight codes: -2^-21 and -2^-17
  }
  out.extra[0] = __low2half2(extra);
  out.extra[1] = __high2half2(extra);
  return out;
}
template <Format kFormat, Grid kGrid>
__device__ __forceinline__ void LoadScales(const std::uint8_t* sub, int lane, LaneScales& out) {
  out = Spread<kFormat, kGrid>(LoadPair(sub, lane),
                               kHasExtras<kGrid> ? LoadPair(sub + kPairBytes, lane) : half2{});
}

/// Bytes of the scales of `sub_cols` columns.
template <Format kFormat, Grid kGrid>
__host__ __device__ constexpr int SubBytes() {
  if (kFormat == Format::kF16 || kGrid == Grid::kRow) {
    return 0;
  }
  return kGrid == Grid::kSymmetric ? kPairBytes : 2 * kPairBytes;
}
template <Format kFormat, Grid kGrid>
inline constexpr bool kHasScales = SubBytes<kFormat, kGrid>() > 0;

/// Codes of 64 columns of a tile, of one lane.
template <Format kFormat>
struct HalfCodes {
  static constexpr int kWords = kFormat == Format::kF16                             ? 4
                                : kFormat == Format::kW8 || kFormat == Format::kFp8 ? 2
                                                                                    : 1;
  static constexpr int kBytes = kWords * 512;  // of all lanes
  uint4 words[kWords];

  __device__ __forceinline__ void Load(const std::uint8_t* half, int lane) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      LoadWord(half, i, lane);
    }
  }
  __device__ __forceinline__ void LoadWord(const std::uint8_t* half, int i, int lane) {
    words[i] = *reinterpret_cast<const uint4*>(half + i * 512 + lane * 16);
  }
};

__device__ __forceinline__ std::uint32_t WordOf(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

template <Grid kGrid>
__device__ __forceinline__ std::uint32_t Scale(std::uint32_t exact, const LaneScales& scales,
                                               int row) {
  if constexpr (kGrid == Grid::kMinima) {
    return AsBits(__hfma2(AsHalf2(exact), scales.scale[row], scales.extra[row]));
  }
  return AsBits(__hmul2(AsHalf2(exact), scales.scale[row]));
}

/// Two e4m3 values, those of the low 16 bits.
__device__ __forceinline__ std::uint32_t HalvesOfE4M3(std::uint32_t two) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t halves;
  asm("{\n"
      ".reg .b16 low;\n"
      "cvt.u16.u32 low, %1;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "}"
      : "=r"(halves)
      : "r"(two));
  return halves;
#else
  // Exponent and mantissa one bit lower than fp16 has them, and a bias that is 8 less: exact.
  const std::uint32_t spread = __byte_perm(two, 0, 0x1404);
  const std::uint32_t tiny = (spread & 0x80008000) | (spread >> 1 & 0x3f803f80);
  return AsBits(__hmul2(AsHalf2(tiny), AsHalf2(0x5c005c00)));  // 256
#endif
}

/// The fragment of step `step` (16 of the 64 columns); `table` as FillTable left it.
template <Format kFormat, Grid kGrid, int kStride = kTableStride>
__device__ __forceinline__ void Fragment(const HalfCodes<kFormat>& codes, int step,
                                         const LaneScales& scales, const std::uint8_t* table,
                                         std::uint32_t (&a)[4]) {
  if constexpr (kFormat == Format::kF16) {
    a[0] = codes.words[step].x;
    a[1] = codes.words[step].y;
    a[2] = codes.words[step].z;
    a[3] = codes.words[step].w;
  } else if constexpr (kFormat == Format::kNf4) {
    const std::uint32_t v = WordOf(codes.words[0], step);
    const std::uint32_t lane = threadIdx.x % 32 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t at;
      if constexpr (kStride == kWideTableStride) {
        at = __byte_perm(v, lane, 0x5504 | i << 4);
      } else {
        at = AndOr(i == 0 ? v << 7 : v >> (8 * i - 7), 0x7f80, lane);
      }
      a[i] = Scale<kGrid>(*reinterpret_cast<const std::uint32_t*>(table + at), scales, i % 2);
    }
  } else if constexpr (kFormat == Format::kFp8) {
    const uint4& words = codes.words[step / 2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t word = WordOf(words, step % 2 * 2 + i / 2);
      a[i] = HalvesOfE4M3(i % 2 == 0 ? word : word >> 16);
      if constexpr (kGrid != Grid::kRow) {
        a[i] = Scale<kGrid>(a[i], scales, i % 2);
      }
    }
  } else if constexpr (kFormat == Format::kW4) {
    // code * scale - 8 * scale, or + minimum, rounded once; (code - zero) * scale.
    const std::uint32_t v = WordOf(codes.words[0], step);
    a[0] = v & 0x000f000f;
    a[1] = v & 0x00f000f0;
    a[2] = v >> 8 & 0x000f000f;
    a[3] = v >> 8 & 0x00f000f0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const half2 extra = scales.extra[i % 2];
      a[i] = AsBits(kGrid == Grid::kZeroPoints
                        ? __hmul2(__hadd2(AsHalf2(a[i]), extra), scales.scale[i % 2])
                        : __hfma2(AsHalf2(a[i]), scales.scale[i % 2], extra));
    }
  } else {
    const uint4& words = codes.words[step / 2];
    const std::uint32_t front = WordOf(words, step % 2 * 2);
    const std::uint32_t back = WordOf(words, step % 2 * 2 + 1);
    constexpr std::uint32_t kMagic = 0x64646464;
    a[0] = __byte_perm(front, kMagic, 0x4140);
    a[1] = __byte_perm(front, kMagic, 0x4342);
    a[2] = __byte_perm(back, kMagic, 0x4140);
    a[3] = __byte_perm(back, kMagic, 0x4342);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      half2 offset;
      if constexpr (kGrid == Grid::kSymmetric) {
        offset = AsHalf2(0xe480e480);  // -1152 = -(1024 + 128)
      } else if constexpr (kGrid == Grid::kZeroPoints) {
        offset = scales.extra[i % 2];
      } else {
        offset = AsHalf2(0xe400e400);  // -1024
      }
      a[i] = Scale<kGrid>(AsBits(__hadd2(AsHalf2(a[i]), offset)), scales, i % 2);
    }
  }
}

}  // namespace nibble::cuda
