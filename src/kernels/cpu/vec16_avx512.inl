#pragma once

#include <immintrin.h>

#include <cstdint>

// GCC 12 sees its own _mm512_undefined_ps() as a use of something uninitialized.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Sixteen lanes of float as one zmm. Everything is in an anonymous namespace: a file built with
// -mavx512* must not leave a symbol that the linker could keep for the whole program. The same
// names on AVX2: cpu/vec16_avx2.inl; the arithmetic: ref/lanes.h.
namespace nibble {
namespace {

struct V {
  __m512 v;
};

inline V Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void Store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
inline __mmask16 FirstLanes(std::int64_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
/// The first n lanes (n < 16); zeros after them.
inline V LoadFirst(const float* p, std::int64_t n) {
  return {_mm512_maskz_loadu_ps(FirstLanes(n), p)};
}
inline void StoreFirst(float* p, V a, std::int64_t n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), a.v);
}
inline V Set(float a) { return {_mm512_set1_ps(a)}; }
inline V Zero() { return {_mm512_setzero_ps()}; }
inline V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V Fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline V NegFma(V a, V b, V c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline V Max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V Min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V Abs(V a) { return {_mm512_abs_ps(a.v)}; }
inline V Negate(V a) {
  return {_mm512_castsi512_ps(
      _mm512_xor_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(INT32_MIN)))};
}
/// a where a >= limit, else 0 (also for NaN).
inline V KeepAtLeast(V a, V limit) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, limit.v, _CMP_GE_OQ), a.v)};
}
/// x in lanes where a > b, y elsewhere.
inline V Greater(V a, V b, V x, V y) {
  return {_mm512_mask_mov_ps(y.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), x.v)};
}
/// Bit i: lane i of a is above, or not below, lane i of b.
inline std::uint32_t MaskGreater(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline std::uint32_t MaskAtLeast(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
/// Lanes [begin, end) of a, `other` elsewhere.
inline V Select(V a, std::int64_t begin, std::int64_t end, V other) {
  const auto mask = static_cast<__mmask16>(((1U << end) - 1U) & ~((1U << begin) - 1U));
  return {_mm512_mask_mov_ps(other.v, mask, a.v)};
}

inline float Sum(V a) {
  const __m256 h8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 h4 = _mm_add_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_add_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_add_ss(h2, _mm_movehdup_ps(h2)));
}
inline float Max(V a) {
  const __m256 h8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 h4 = _mm_max_ps(_mm256_castps256_ps128(h8), _mm256_extractf128_ps(h8, 1));
  const __m128 h2 = _mm_max_ps(h4, _mm_movehl_ps(h4, h4));
  return _mm_cvtss_f32(_mm_max_ss(h2, _mm_movehdup_ps(h2)));
}

inline __m512 ExpInRange(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p0F)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0x1.62e43p-1F), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.05c61p-29F), r);
  __m512 p = _mm512_set1_ps(0x1.6a4d14p-10F);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.12398ap-7F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558bp-5F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555492p-3F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(p, n);  // rounds once, as the two factors of ref::Exp do
}
/// Exp of x <= 0 or NaN: the same bits for less. e^-110 already rounds to 0, and max with the NaN
/// second keeps it.
inline V ExpOfNonPositive(V x) { return {ExpInRange(_mm512_max_ps(_mm512_set1_ps(-110.0F), x.v))}; }
inline V Exp(V x) {
  const V p = ExpOfNonPositive(x);
  const __mmask16 high = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(0x1.62e42ep6F), _CMP_GT_OQ);
  return {_mm512_mask_mov_ps(p.v, high, _mm512_set1_ps(__builtin_inff()))};
}

/// 16 pairs of bf16: the even and the odd ones.
inline void LoadPairs(const unsigned char* p, V& even, V& odd) {
  const __m512i words = _mm512_loadu_si512(p);
  even = {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
  odd = {_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-65536)))};
}

struct Bytes {
  __m512i v;
};
inline Bytes LoadBytes(const unsigned char* p) { return {_mm512_loadu_si512(p)}; }
/// Byte kIndex of every group of four, as a number 0..255.
template <int kIndex>
static inline V Byte(Bytes bytes) {
  // Within 128 bits: byte 4 i + kIndex to byte 4 i, zeros elsewhere.
  const __m512i pick = _mm512_set4_epi32(
      static_cast<int>(0x8080800cU + kIndex), static_cast<int>(0x80808008U + kIndex),
      static_cast<int>(0x80808004U + kIndex), static_cast<int>(0x80808000U + kIndex));
  return {_mm512_cvtepi32_ps(_mm512_shuffle_epi8(bytes.v, pick))};
}
/// 16 numbers of fp16.
inline V LoadHalves(const unsigned char* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

inline __m512i BF16Bits(V a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i lsb = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), lsb), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
}
inline void StoreBF16(std::uint16_t* p, V a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(BF16Bits(a)));
}
/// Element `odd` of 16 pairs of bf16; the other elements are not written at all, as another worker
/// may be writing them.
inline void StoreBF16IntoPairs(unsigned char* p, int odd, V a) {
  const __m512i bits = BF16Bits(a);
  _mm512_mask_storeu_epi16(p, odd != 0 ? 0xaaaaaaaaU : 0x55555555U,
                           odd != 0 ? _mm512_slli_epi32(bits, 16) : bits);
}
/// Nearest integer + 128 of numbers in [-127, 127].
inline void StoreCodes(unsigned char* p, V a) {
  const __m512i codes = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(128));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes));
}

}  // namespace
}  // namespace nibble
