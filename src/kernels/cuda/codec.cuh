#pragma once

// From packed codes to fragments of mma.m16n8k16 (weights are the A operand), and nothing else:
// every kernel that multiplies weights decodes them here, so all of them multiply the same numbers.
//
//   w = fp16((code - zero) * scale)       symmetric and zero points; the difference is exact
//   w = fp16(code * scale + minimum)      minima, one rounding
//
// A code becomes 1024 + code by putting it under the exponent of 1024 (fp16 has 10 bits of
// mantissa); 4-bit codes of rows r + 8 stand 4 bits higher and become 1024 + 16 code.
// docs/formats/cuda_weight.md.

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/weight_layout.h"

namespace nibble::cuda {

/// Scales (and zero points or minima) of a lane's two rows, r and r + 8, each twice for half2.
struct LaneScales {
  half2 scale[2];
  half2 extra[2];  // -(offset + zero), or the minimum
};

template <Grid kGrid>
__device__ __forceinline__ void LoadScales(const std::uint8_t* sub, int lane, LaneScales& out) {
  const half2 scale = *reinterpret_cast<const half2*>(sub + lane / 4 * 4);
  out.scale[0] = __low2half2(scale);
  out.scale[1] = __high2half2(scale);
  if constexpr (kGrid != Grid::kSymmetric) {
    const half2 extra = *reinterpret_cast<const half2*>(sub + kPairBytes + lane / 4 * 4);
    out.extra[0] = __low2half2(extra);
    out.extra[1] = __high2half2(extra);
  }
}

/// Bytes of the scales of `sub_cols` columns.
template <Format kFormat, Grid kGrid>
__host__ __device__ constexpr int SubBytes() {
  return kFormat == Format::kF16 ? 0 : kGrid == Grid::kSymmetric ? kPairBytes : 2 * kPairBytes;
}

/// Codes of 64 columns of a tile, of one lane.
template <Format kFormat>
struct HalfCodes {
  static constexpr int kWords = kFormat == Format::kW4 ? 1 : kFormat == Format::kW8 ? 2 : 4;
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

/// The fragment of step `step` (16 of the 64 columns).
template <Format kFormat, Grid kGrid>
__device__ __forceinline__ void Fragment(const HalfCodes<kFormat>& codes, int step,
                                         const LaneScales& scales, std::uint32_t (&a)[4]) {
  if constexpr (kFormat == Format::kF16) {
    a[0] = codes.words[step].x;
    a[1] = codes.words[step].y;
    a[2] = codes.words[step].z;
    a[3] = codes.words[step].w;
  } else if constexpr (kFormat == Format::kW4) {
    constexpr std::uint32_t kMagic = 0x64006400;  // 1024
    std::uint32_t v = WordOf(codes.words[0], step);
    a[0] = AndOr(v, 0x000f000f, kMagic);
    a[1] = AndOr(v, 0x00f000f0, kMagic);
    v >>= 8;
    a[2] = AndOr(v, 0x000f000f, kMagic);
    a[3] = AndOr(v, 0x00f000f0, kMagic);
    const half2 sixteenth = AsHalf2(0x2c002c00);  // 1/16
    half2 low;
    half2 high;
    if constexpr (kGrid == Grid::kSymmetric) {
      low = AsHalf2(0xe408e408);   // -1032
      high = AsHalf2(0xd480d480);  // -72
    } else if constexpr (kGrid == Grid::kZeroPoints) {
      low = scales.extra[0];
      high = scales.extra[1];
    } else {
      low = AsHalf2(0xe400e400);   // -1024
      high = AsHalf2(0xd400d400);  // -64
    }
    a[0] = Scale<kGrid>(AsBits(__hadd2(AsHalf2(a[0]), low)), scales, 0);
    a[1] = Scale<kGrid>(AsBits(__hfma2(AsHalf2(a[1]), sixteenth, high)), scales, 1);
    a[2] = Scale<kGrid>(AsBits(__hadd2(AsHalf2(a[2]), low)), scales, 0);
    a[3] = Scale<kGrid>(AsBits(__hfma2(AsHalf2(a[3]), sixteenth, high)), scales, 1);
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
