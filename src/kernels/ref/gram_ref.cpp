#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/gram_kernel.h"

namespace nibble {
namespace {

void Gram(const GramCall& call) {
  for (std::int64_t begin = 0; begin < call.rows; begin += kGramChain) {
    const std::int64_t end = std::min(call.rows, begin + kGramChain);
    for (std::int64_t i = 0; i < kGramRows; ++i) {
      for (std::int64_t j = 0; j < call.num_panels * kGramPanel; ++j) {
        const float* b = call.b + j / kGramPanel * call.b_stride + j % kGramPanel;
        float chain = 0.0F;
        for (std::int64_t t = begin; t < end; ++t) {
          chain = std::fma(call.a[t * kGramPanel + i], b[t * kGramPanel], chain);
        }
        call.c[i * call.c_stride + j] += static_cast<double>(chain);
      }
    }
  }
}

void Downdate(const DowndateCall& call) {
  for (std::int64_t i = 0; i < kGramRows; ++i) {
    for (std::int64_t j = 0; j < kGramPanel; ++j) {
      double& c = call.c[i * call.c_stride + j];
      for (std::int64_t t = 0; t < call.rows; ++t) {
        c = std::fma(-call.a[t * kGramPanel + i], call.b[t * kGramPanel + j], c);
      }
    }
  }
}

// Of the even row and of the odd one.
std::int32_t Even(std::uint32_t word) { return static_cast<std::int16_t>(word & 0xffffU); }
std::int32_t Odd(std::uint32_t word) { return static_cast<std::int16_t>(word >> 16); }

void GramInt16(const GramInt16Call& call) {
  const auto step = [](std::uint32_t bits) {
    return static_cast<double>(std::bit_cast<float>(bits));
  };
  for (std::int64_t i = 0; i < kGramRows; ++i) {
    for (std::int64_t j = 0; j < call.num_panels * kGramPanel; ++j) {
      const std::uint32_t* b = call.b + j / kGramPanel * call.b_stride + j % kGramPanel;
      std::int64_t sum = 0;
      for (std::int64_t t = 1; t <= call.pairs; ++t) {
        const std::uint32_t x = call.a[t * kGramPanel + i], y = b[t * kGramPanel];
        sum += std::int64_t{Even(x)} * Even(y) + std::int64_t{Odd(x)} * Odd(y);
      }
      call.c[i * call.c_stride + j] += static_cast<double>(sum) * (step(call.a[i]) * step(b[0]));
    }
  }
}

// 2^k and 2^-k of a column whose squares sum to energy.
struct ColumnScale {
  float scale = 0.0F;
  float step = 0.0F;
};
ColumnScale ScaleOf(float energy) {
  // Room for the rounding; NaN may have any sign.
  const auto bits = std::bit_cast<std::uint32_t>(energy * 1.00390625F) & 0x7fffffffU;
  if (bits >= kGramInfinityBits) {
    return {.step = std::numeric_limits<float>::quiet_NaN()};
  }
  if (bits < kGramTinyBits) {
    return {};
  }
  const int k = (29 - (static_cast<int>(bits >> 23) - 127)) >> 1;
  return {.scale = std::ldexp(1.0F, k), .step = std::ldexp(1.0F, -k)};
}

void PackInt16(const GramPackInt16Call& call) {
  const std::int64_t words = (1 + (call.rows + 1) / 2) * kGramPanel;
  std::fill(call.panel, call.panel + words, 0U);
  for (int c = 0; c < call.columns; ++c) {
    const auto at = [&](std::int64_t row) {
      const std::int64_t i = row * call.stride + c;
      return call.minus == nullptr ? call.x[i] : call.x[i] - call.minus[i];
    };
    float energy = 0.0F;
    for (std::int64_t row = 0; row < call.rows; ++row) {
      energy = std::fma(at(row), at(row), energy);
    }
    const ColumnScale column = ScaleOf(energy);
    call.panel[c] = std::bit_cast<std::uint32_t>(column.step);
    for (std::int64_t row = 0; row < call.rows && column.scale > 0.0F; ++row) {
      const auto value = static_cast<std::uint16_t>(std::lrint(at(row) * column.scale));
      call.panel[(1 + row / 2) * kGramPanel + c] |= std::uint32_t{value} << (row % 2 * 16);
    }
  }
}

}  // namespace

const GramKernels kRefGram = {.name = "ref",
                              .gram = Gram,
                              .downdate = Downdate,
                              .gram_int16 = GramInt16,
                              .pack_int16 = PackInt16};

}  // namespace nibble
