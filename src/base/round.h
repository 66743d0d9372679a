#pragma once

namespace nibble {

/// To nearest even, for |x| < 2^22: two additions, which vectorize without SSE4.
inline float RoundNearest(float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

}  // namespace nibble
