#include <algorithm>
#include <bit>
#include <cmath>

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

float Even(std::uint32_t word) { return std::bit_cast<float>(word << 16); }
float Odd(std::uint32_t word) { return std::bit_cast<float>(word & 0xffff0000U); }

void GramBf16(const GramBf16Call& call) {
  constexpr std::int64_t kPairs = kGramBf16Chain / 2;
  for (std::int64_t begin = 0; begin < call.pairs; begin += kPairs) {
    const std::int64_t end = std::min(call.pairs, begin + kPairs);
    for (std::int64_t i = 0; i < kGramRows; ++i) {
      for (std::int64_t j = 0; j < call.num_panels * kGramPanel; ++j) {
        const std::uint32_t* b = call.b + j / kGramPanel * call.b_stride + j % kGramPanel;
        float chain = 0.0F;
        for (std::int64_t t = begin; t < end; ++t) {
          const std::uint32_t x = call.a[t * kGramPanel + i], y = b[t * kGramPanel];
          chain = std::fma(Odd(x), Odd(y), chain);
          chain = std::fma(Even(x), Even(y), chain);
        }
        call.c[i * call.c_stride + j] += static_cast<double>(chain);
      }
    }
  }
}

std::uint32_t RoundToBf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude < kGramTinyBits) {
    return 0;
  }
  return magnitude > 0x7f800000U ? bits >> 16 | 0x40U : (bits + 0x7fffU + (bits >> 16 & 1U)) >> 16;
}

void PackBf16(const GramPackBf16Call& call) {
  const auto at = [&](std::int64_t row, int column) -> std::uint32_t {
    if (row >= call.rows || column >= call.columns) {
      return 0;
    }
    const std::int64_t i = row * call.stride + column;
    return RoundToBf16(call.minus == nullptr ? call.x[i] : call.x[i] - call.minus[i]);
  };
  for (std::int64_t t = 0; t < (call.rows + 1) / 2; ++t) {
    for (int c = 0; c < kGramPanel; ++c) {
      call.panel[t * kGramPanel + c] = at(2 * t, c) | at(2 * t + 1, c) << 16;
    }
  }
}

}  // namespace

const GramKernels kRefGram = {.name = "ref",
                              .gram = Gram,
                              .downdate = Downdate,
                              .gram_bf16 = GramBf16,
                              .pack_bf16 = PackBf16};

}  // namespace nibble
