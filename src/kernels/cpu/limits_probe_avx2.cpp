#include <immintrin.h>

#include <cstdint>

#include "kernels/limits_kernel.h"

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")
constexpr int kChains = 12;  // of 16 registers

void Read(const std::uint8_t* data, std::int64_t size_bytes) {
  constexpr int kStreams = 4;
  const std::int64_t stride = size_bytes / kStreams;
  __m256i sum[kStreams];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm256_setzero_si256(); }
  for (std::int64_t i = 0; i < stride; i += 256) {
    NIBBLE_UNROLL for (int s = 0; s < kStreams; ++s) {
      const std::uint8_t* at = data + s * stride + i;
      NIBBLE_UNROLL for (int line = 0; line < 256; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(at) + 1024 + line, _MM_HINT_T0);
        const auto* both = reinterpret_cast<const __m256i*>(at + line);
        sum[s] = _mm256_xor_si256(
            sum[s], _mm256_xor_si256(_mm256_loadu_si256(both), _mm256_loadu_si256(both + 1)));
      }
    }
  }
  NIBBLE_UNROLL for (auto& s : sum) { __asm__ volatile("" ::"x"(s)); }
}

// vpmaddwd and vpaddd.
void Int16Products(std::int64_t iterations) {
  __m256i sum[kChains];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm256_setzero_si256(); }
  const __m256i a = _mm256_set1_epi16(1);
  for (std::int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL for (int c = 0; c < kChains; ++c) {
      __m256i product;
      __asm__ volatile("vpmaddwd %1, %1, %0" : "=x"(product) : "x"(a));
      __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum[c]) : "x"(product));
    }
  }
}

void F32Fma(std::int64_t iterations) {
  __m256 sum[kChains];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm256_setzero_ps(); }
  const __m256 a = _mm256_set1_ps(0.5F);
  for (std::int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL for (int c = 0; c < kChains; ++c) {
      __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(sum[c]) : "x"(a));
    }
  }
}

}  // namespace

LimitKernels Avx2LimitKernels() {
  // Without VNNI int8 is widened to int16.
  return {Isa::kAvx2, Read,           Int16Products, kChains * 32.0,
          F32Fma,     kChains * 16.0, Int16Products, kChains * 32.0};
}

}  // namespace nibble
