// The body of grid_avx2.cpp and grid_avx512.cpp, written in terms of V (vec16_*.inl, included
// before). 16 values a step from the first level of cache: judge by operations. Arithmetic:
// ref/grid_ref.cpp.

namespace nibble {
namespace {

template <typename Round>
inline void SumErrors(const GridErrorCall& call, Round&& round) {
  const V scale = Load(call.scale);
  const V inverse = Load(call.inverse);
  V sum = Zero();
  for (std::int64_t i = 0; i < call.count; ++i) {
    const V x = Load(call.values + i * 16);
    const V error = x - round(x * inverse) * scale;
    sum = sum + Set(call.weights[i]) * (error * error);
  }
  Store(call.error, sum);
}

void Error(const GridErrorCall& call) {
  if (call.ends == nullptr) {
    const V zero = Load(call.zero);
    const V low = Negate(zero);
    const V high = Set(call.top) - zero;
    const V magic = Set(12582912.0F);  // 1.5 * 2^23
    SumErrors(call, [&](V scaled) { return (Min(Max(scaled, low), high) + magic) - magic; });
    return;
  }
  SumErrors(call, [&](V scaled) {
    V value = Set(call.cells[0]);
#pragma GCC unroll 15
    for (int cell = 0; cell < 15; ++cell) {
      value = Greater(scaled, Set(call.ends[cell]), Set(call.cells[cell + 1]), value);
    }
    return value;
  });
}

}  // namespace
}  // namespace nibble
