// The body of ops_avx2.cpp and ops_avx512.cpp, written in terms of V (vec16_*.inl, included
// before). Arithmetic: ref/ops_ref.cpp. Memory-bound: norm reads 2 and writes 2 rows, SwiGLU reads
// 2 and writes 1.

namespace nibble {
namespace {

// body(i, load, store) for whole vectors, then once for the rest of the row.
template <typename Body>
static inline void ForLanes(std::int64_t width, Body body) {
  std::int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    body(
        i, [](const float* p) { return Load(p); }, [](float* p, V a) { Store(p, a); });
  }
  if (const std::int64_t rest = width - i; rest > 0) {
    body(
        i, [rest](const float* p) { return LoadFirst(p, rest); },
        [rest](float* p, V a) { StoreFirst(p, a, rest); });
  }
}

inline float InverseRms(V squares, std::int64_t width, float eps) {
  const float mean = Sum(squares) / static_cast<float>(width);
  return 1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
}

void AddRmsNormRow(float* residual, const float* delta, const float* weight, float eps, float* out,
                   std::int64_t width) {
  V squares = Zero();
  if (delta != nullptr) {
    ForLanes(width, [&](std::int64_t i, auto load, auto store) {
      const V x = load(residual + i) + load(delta + i);
      store(residual + i, x);
      squares = Fma(x, x, squares);
    });
  } else {
    ForLanes(width, [&](std::int64_t i, auto load, auto) {
      const V x = load(residual + i);
      squares = Fma(x, x, squares);
    });
  }
  if (out == nullptr) {
    return;
  }
  const V inverse = Set(InverseRms(squares, width, eps));
  ForLanes(width, [&](std::int64_t i, auto load, auto store) {
    store(out + i, load(residual + i) * inverse * load(weight + i));
  });
}

void AddBiasRow(float* x, const float* bias, std::int64_t width) {
  ForLanes(width, [&](std::int64_t i, auto load, auto store) {
    store(x + i, load(x + i) + load(bias + i));
  });
}

void SwiGluRow(const float* gate, const float* up, float* out, std::int64_t width) {
  const V one = Set(1.0F);
  ForLanes(width, [&](std::int64_t i, auto load, auto store) {
    const V g = load(gate + i);
    store(out + i, g / (one + Exp(Negate(g))) * load(up + i));
  });
}

void GeGluRow(const float* gate, const float* up, float* out, std::int64_t width) {
  const V one = Set(1.0F);
  const V linear = Set(kGeluLinear);
  const V cubic = Set(kGeluCubic);
  ForLanes(width, [&](std::int64_t i, auto load, auto store) {
    const V x = load(gate + i);
    store(out + i, x / (one + Exp(Fma(x * x, cubic, linear) * x)) * load(up + i));
  });
}

void ExpRow(const float* x, float* y, std::int64_t count) {
  ForLanes(count, [&](std::int64_t i, auto load, auto store) { store(y + i, Exp(load(x + i))); });
}

}  // namespace
}  // namespace nibble
