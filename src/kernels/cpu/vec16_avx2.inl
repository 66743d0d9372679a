#pragma once

#include <immintrin.h>

#include <cstdint>

// Sixteen lanes of float as two ymm: lanes 0-7 and 8-15. The names of cpu/vec16_avx512.inl, the
// arithmetic of ref/lanes.h, and no symbol outside this file, for the same reason.
namespace nibble {
namespace {

struct V {
  __m256 lo;
  __m256 hi;
};

inline V Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, V a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
/// All ones in lanes [0, n) of the half that starts at lane `base`.
inline __m256i FirstLanes(std::int64_t n, int base) {
  const __m256i lanes =
      _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(base));
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
}
/// The first n lanes (n < 16); zeros after them.
inline V LoadFirst(const float* p, std::int64_t n) {
  return {_mm256_maskload_ps(p, FirstLanes(n, 0)),
          n > 8 ? _mm256_maskload_ps(p + 8, FirstLanes(n, 8)) : _mm256_setzero_ps()};
}
inline void StoreFirst(float* p, V a, std::int64_t n) {
  _mm256_maskstore_ps(p, FirstLanes(n, 0), a.lo);
  if (n > 8) {
    _mm256_maskstore_ps(p + 8, FirstLanes(n, 8), a.hi);
  }
}
inline V Set(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline V Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V operator+(V a, V b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline V operator-(V a, V b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline V operator*(V a, V b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline V operator/(V a, V b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline V Fma(V a, V b, V c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline V NegFma(V a, V b, V c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline V Max(V a, V b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline V Min(V a, V b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline V Abs(V a) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline V Negate(V a) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  return {_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}
/// a where a >= limit, else 0 (also for NaN).
inline V KeepAtLeast(V a, V limit) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.lo, limit.lo, _CMP_GE_OQ), a.lo),
          _mm256_and_ps(_mm256_cmp_ps(a.hi, limit.hi, _CMP_GE_OQ), a.hi)};
}
/// x in lanes where a > b, y elsewhere.
inline V Greater(V a, V b, V x, V y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ))};
}
inline std::uint32_t Bits(__m256 lo, __m256 hi) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(lo)) |
         (static_cast<std::uint32_t>(_mm256_movemask_ps(hi)) << 8);
}
/// Bit i: lane i of a is above, or not below, lane i of b.
inline std::uint32_t MaskGreater(V a, V b) {
  return Bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
}
inline std::uint32_t MaskAtLeast(V a, V b) {
  return Bits(_mm256_cmp_ps(a.lo, b.lo, _CMP_GE_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GE_OQ));
}
/// Lanes [begin, end) of a, `other` elsewhere.
inline V Select(V a, std::int64_t begin, std::int64_t end, V other) {
  const auto half = [&](__m256 x, __m256 y, int base) {
    const __m256i inside = _mm256_andnot_si256(FirstLanes(begin, base), FirstLanes(end, base));
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(inside));
  };
  return {half(a.lo, other.lo, 0), half(a.hi, other.hi, 8)};
}

inline float Sum(V a) {
  const __m256 h8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}
inline float Max(V a) {
  const __m256 h8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 h4 = _mm_max_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_max_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_max_ss(h2, _mm_movehdup_ps(h2)));
}

inline __m256 ExpInRange(__m256 x) {
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p0F)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0x1.62e43p-1F), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(0x1.05c61p-29F), r);
  __m256 p = _mm256_set1_ps(0x1.6a4d14p-10F);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.12398ap-7F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558bp-5F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555492p-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0F));
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
/// Exp of x <= 0 or NaN: the same bits for less. e^-110 already rounds to 0, and max with the NaN
/// second keeps it.
inline __m256 ExpOfNonPositive(__m256 x) {
  return ExpInRange(_mm256_max_ps(_mm256_set1_ps(-110.0F), x));
}
inline __m256 Exp(__m256 x) {
  const __m256 high = _mm256_cmp_ps(x, _mm256_set1_ps(0x1.62e42ep6F), _CMP_GT_OQ);
  return _mm256_blendv_ps(ExpOfNonPositive(x), _mm256_set1_ps(__builtin_inff()), high);
}
inline V ExpOfNonPositive(V x) { return {ExpOfNonPositive(x.lo), ExpOfNonPositive(x.hi)}; }
inline V Exp(V x) { return {Exp(x.lo), Exp(x.hi)}; }

/// 16 pairs of bf16: the even and the odd ones.
inline void LoadPairs(const unsigned char* p, V& even, V& odd) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  const __m256i mask = _mm256_set1_epi32(-65536);
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)),
         _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}

struct Bytes {
  __m256i lo;
  __m256i hi;
};
inline Bytes LoadBytes(const unsigned char* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
/// Byte kIndex of every group of four, as a number 0..255.
template <int kIndex>
static inline V Byte(Bytes bytes) {
  // Within 128 bits: byte 4 i + kIndex to byte 4 i, zeros elsewhere.
  const __m256i pick = _mm256_broadcastsi128_si256(_mm_setr_epi32(
      static_cast<int>(0x80808000U + kIndex), static_cast<int>(0x80808004U + kIndex),
      static_cast<int>(0x80808008U + kIndex), static_cast<int>(0x8080800cU + kIndex)));
  return {_mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes.lo, pick)),
          _mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes.hi, pick))};
}
/// 16 numbers of fp16.
inline V LoadHalves(const unsigned char* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}

inline __m256i BF16Bits8(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i lsb = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), lsb), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
inline void StoreBF16(std::uint16_t* p, V a) {
  // packus works within 128-bit halves; the permute puts the four quarters in order.
  const __m256i packed = _mm256_packus_epi32(BF16Bits8(a.lo), BF16Bits8(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
/// Element `odd` of 16 pairs of bf16; the other elements are not written at all, as another worker
/// may be writing them.
inline void StoreBF16IntoPairs(unsigned char* p, int odd, V a) {
  std::uint16_t bits[16];
  StoreBF16(bits, a);
  std::uint16_t* out = reinterpret_cast<std::uint16_t*>(p) + odd;
  for (int i = 0; i < 16; ++i) {
    out[2 * i] = bits[i];
  }
}
/// Nearest integer + 128 of numbers in [-127, 127].
inline void StoreCodes(unsigned char* p, V a) {
  const __m256i bias = _mm256_set1_epi32(128);
  const __m256i lo = _mm256_add_epi32(_mm256_cvtps_epi32(a.lo), bias);
  const __m256i hi = _mm256_add_epi32(_mm256_cvtps_epi32(a.hi), bias);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

}  // namespace
}  // namespace nibble
