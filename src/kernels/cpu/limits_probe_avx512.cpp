#include <immintrin.h>

#include <cstdint>

#include "kernels/limits_kernel.h"

namespace nibble {
namespace {

#define NIBBLE_UNROLL _Pragma("GCC unroll 64")
constexpr int kChains = 16;  // more than latency times issue width of any core

// Four streams a page or more apart, each prefetched ahead: what fills the miss queue best.
void Read(const std::uint8_t* data, std::int64_t size_bytes) {
  constexpr int kStreams = 4;
  const std::int64_t stride = size_bytes / kStreams;
  __m512i sum[kStreams];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm512_setzero_si512(); }
  for (std::int64_t i = 0; i < stride; i += 256) {
    NIBBLE_UNROLL for (int s = 0; s < kStreams; ++s) {
      const std::uint8_t* at = data + s * stride + i;
      NIBBLE_UNROLL for (int line = 0; line < 256; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(at) + 1024 + line, _MM_HINT_T0);
        sum[s] = _mm512_xor_si512(sum[s], _mm512_loadu_si512(at + line));
      }
    }
  }
  NIBBLE_UNROLL for (auto& s : sum) { __asm__ volatile("" ::"v"(s)); }
}

void Int8Products(std::int64_t iterations) {
  __m512i sum[kChains];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm512_setzero_si512(); }
  const __m512i a = _mm512_set1_epi8(1);
  const __m512i b = _mm512_set1_epi8(-1);
  for (std::int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL for (int c = 0; c < kChains; ++c) {
      __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum[c]) : "v"(a), "v"(b));
    }
  }
}

void F32Fma(std::int64_t iterations) {
  __m512 sum[kChains];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm512_setzero_ps(); }
  const __m512 a = _mm512_set1_ps(0.5F);
  for (std::int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL for (int c = 0; c < kChains; ++c) {
      __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(sum[c]) : "v"(a));
    }
  }
}

void Int16Products(std::int64_t iterations) {
  __m512i sum[kChains];
  NIBBLE_UNROLL for (auto& s : sum) { s = _mm512_setzero_si512(); }
  const __m512i a = _mm512_set1_epi16(1);
  for (std::int64_t i = 0; i < iterations; ++i) {
    NIBBLE_UNROLL for (int c = 0; c < kChains; ++c) {
      __asm__ volatile("vpdpwssd %1, %1, %0" : "+v"(sum[c]) : "v"(a));
    }
  }
}

}  // namespace

LimitKernels Avx512LimitKernels() {
  return {Isa::kAvx512, Read,           Int8Products,  kChains * 128.0,
          F32Fma,       kChains * 32.0, Int16Products, kChains * 64.0};
}

}  // namespace nibble
