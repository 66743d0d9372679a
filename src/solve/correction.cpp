#include "solve/correction.h"

#include <algorithm>
#include <cmath>

#include "kernels/gram.h"
#include "solve/row_panels.h"

namespace nibble {
namespace {

constexpr std::int64_t kPanel = kGramPanel;

// Solves W* - W = W (G - H) (H + lambda I)^-1 for the rows of one worker, with H + lambda I = R
// R^T.
class Correction {
 public:
  Correction(const HessianFactor& factor, const InputShift& shift)
      : factor_(factor),
        shift_(shift),
        w_(factor.padded),
        u_(factor.padded),
        z_(factor.padded),
        sums_(static_cast<std::size_t>(kPanel * kRowsAtOnce)) {}

  // Adds it to rows [begin, end) of out.
  void Run(std::span<const float> weights, std::int64_t begin, std::int64_t end,
           std::vector<float>& out) {
    w_.Read(weights, begin, end, factor_);
    u_.Clear();
    z_.Clear();
    const std::int64_t panels = factor_.padded / kPanel;
    for (std::int64_t p = panels - 1; p >= 0; --p) {
      SolveRows(p);
    }
    for (std::int64_t p = 0; p < panels; ++p) {
      SolveColumns(p);
    }
    for (std::int64_t r = 0; r < end - begin; ++r) {
      for (std::int64_t i = 0; i < factor_.width; ++i) {
        const std::int64_t column = factor_.order[static_cast<std::size_t>(i)];
        out[static_cast<std::size_t>((begin + r) * factor_.width + column)] +=
            z_.At(r / kPanel, i)[r % kPanel];
      }
    }
  }

 private:
  double InverseRoot(std::int64_t i) const {
    return 1.0 / std::sqrt(factor_.diagonal[static_cast<std::size_t>(i)]);
  }
  double& Sum(std::int64_t c, std::int64_t r) {
    return sums_[static_cast<std::size_t>(c * kRowsAtOnce + r)];
  }
  void Add(const float* ratios, const RowPanels& x, std::int64_t from, std::int64_t to) {
    if (to > from) {
      AddGramPanel(ratios, x.At(0, from), factor_.padded * kPanel, kPanelsAtOnce, to - from,
                   sums_.data(), kRowsAtOnce);
    }
  }

  // u R^T = W (G - H), last panel first: u_i = y_i / R_ii - sum over k > i of R_ik / R_ii u_k.
  void SolveRows(std::int64_t p) {
    const std::int64_t n = factor_.padded;
    const float* ratios = factor_.RowRatios(p);
    std::ranges::fill(sums_, 0.0);
    Add(shift_.panels.data() + p * n * kPanel, w_, 0, n);
    for (std::int64_t c = 0; c < kPanel; ++c) {
      const double inverse = -InverseRoot(p * kPanel + c);
      for (std::int64_t r = 0; r < kRowsAtOnce; ++r) {
        Sum(c, r) *= inverse;
      }
    }
    Add(ratios + kPanel * kPanel, u_, (p + 1) * kPanel, n);
    for (std::int64_t c = kPanel - 1; c >= 0; --c) {
      for (std::int64_t k = c + 1; k < kPanel; ++k) {
        AddProduct(ratios[k * kPanel + c], u_, p * kPanel + k, c);
      }
      for (std::int64_t r = 0; r < kRowsAtOnce; ++r) {
        u_.At(r / kPanel, p * kPanel + c)[r % kPanel] = static_cast<float>(-Sum(c, r));
      }
    }
  }

  // z R = u, first panel first: z_i = u_i / R_ii - sum over k < i of R_ki / R_ii z_k.
  void SolveColumns(std::int64_t p) {
    const float* ratios = factor_.Ratios(p);
    std::ranges::fill(sums_, 0.0);
    Add(ratios, z_, 0, p * kPanel);
    for (std::int64_t c = 0; c < kPanel; ++c) {
      for (std::int64_t k = 0; k < c; ++k) {
        AddProduct(ratios[(p * kPanel + k) * kPanel + c], z_, p * kPanel + k, c);
      }
      const std::int64_t i = p * kPanel + c;
      const double inverse = InverseRoot(i);
      for (std::int64_t r = 0; r < kRowsAtOnce; ++r) {
        const auto u = static_cast<double>(u_.At(r / kPanel, i)[r % kPanel]);
        z_.At(r / kPanel, i)[r % kPanel] = static_cast<float>(u * inverse - Sum(c, r));
      }
    }
  }

  // Sum(c, r) += ratio * x at `position`, for all rows.
  void AddProduct(float ratio, const RowPanels& x, std::int64_t position, std::int64_t c) {
    for (std::int64_t panel = 0; panel < kPanelsAtOnce; ++panel) {
      const float* values = x.At(panel, position);
      double* sums = &Sum(c, panel * kPanel);
      for (std::int64_t l = 0; l < kPanel; ++l) {
        sums[l] += static_cast<double>(ratio * values[l]);
      }
    }
  }

  const HessianFactor& factor_;
  const InputShift& shift_;
  RowPanels w_, u_, z_;
  std::vector<double> sums_;  // [16][kRowsAtOnce]
};

}  // namespace

std::uint64_t InputShift::SizeBytes(std::int64_t width) {
  const auto n = static_cast<std::uint64_t>(PadToPanel(width));
  return n * n * sizeof(float);
}

double CorrectionStrength(std::int64_t num_tokens, std::int64_t width) {
  constexpr double kTokensPerParameter = 10.0;
  const auto tokens = static_cast<double>(num_tokens);
  return tokens / (tokens + kTokensPerParameter * static_cast<double>(width));
}

InputShift ShiftOf(ThreadPool& pool, const HessianFactor& factor, const InputSums& sums,
                   double strength) {
  const std::int64_t n = factor.padded;
  InputShift shift;
  shift.panels.resize(static_cast<std::size_t>(n * n));
  pool.For(n / kPanel, 1, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first * kPanel; i < std::min(factor.width, last * kPanel); ++i) {
      const std::int64_t y = factor.order[static_cast<std::size_t>(i)];
      float* to = shift.panels.data() + i / kPanel * n * kPanel + i % kPanel;
      for (std::int64_t j = 0; j < factor.width; ++j) {
        const std::int64_t x = factor.order[static_cast<std::size_t>(j)];
        to[j * kPanel] = static_cast<float>(strength * sums.ShiftAt(x, y));
      }
    }
  });
  return shift;
}

std::vector<float> CorrectWeights(ThreadPool& pool, std::span<const float> weights,
                                  const HessianFactor& factor, const InputShift& shift) {
  const auto rows = static_cast<std::int64_t>(weights.size()) / factor.width;
  std::vector<float> out(weights.begin(), weights.end());
  const std::int64_t parts = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  pool.For(parts, 1, [&](std::int64_t first, std::int64_t last, int) {
    Correction correction(factor, shift);
    for (std::int64_t part = first; part < last; ++part) {
      correction.Run(weights, part * kRowsAtOnce, std::min(rows, (part + 1) * kRowsAtOnce), out);
    }
  });
  return out;
}

}  // namespace nibble
