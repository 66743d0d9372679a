#include "solve/hessian.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "kernels/gram.h"

namespace nibble {
namespace {

constexpr std::int64_t kBlock = 64;  // columns eliminated at once
constexpr std::int64_t kPanel = kGramPanel;
constexpr int kMaxRetries = 8;

std::size_t Square(std::int64_t n) {
  return static_cast<std::size_t>(n) * static_cast<std::size_t>(n);
}

// The matrix that is factorized in place: row-major [n, n], upper half.
class Elimination {
 public:
  Elimination(ThreadPool& pool, std::vector<double>& matrix, std::int64_t n)
      : pool_(pool), a_(matrix), n_(n) {}

  // A = R R^T with R in the place of A; false if a pivot is not positive.
  bool Run() {
    for (std::int64_t end = n_; end > 0;) {
      const std::int64_t begin = (end - 1) / kBlock * kBlock;
      if (!Diagonal(begin, end)) {
        return false;
      }
      if (begin > 0) {
        Rows(begin, end);
        Downdate(pool_, panels_.data(), begin, end - begin, a_.data(), n_);
      }
      end = begin;
    }
    return true;
  }

 private:
  double& At(std::int64_t i, std::int64_t j) { return a_[static_cast<std::size_t>(i * n_ + j)]; }

  // The square of rows and columns [begin, end), last column first.
  bool Diagonal(std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = end - 1; k >= begin; --k) {
      const double pivot = At(k, k);
      if (!(pivot > 0.0) || !std::isfinite(pivot)) {
        return false;
      }
      const double root = std::sqrt(pivot);
      At(k, k) = root;
      for (std::int64_t i = begin; i < k; ++i) {
        At(i, k) /= root;
      }
      for (std::int64_t i = begin; i < k; ++i) {
        const double r = At(i, k);
        for (std::int64_t j = i; j < k; ++j) {
          At(i, j) -= r * At(j, k);
        }
      }
    }
    return true;
  }

  // Rows above the square: R_ik = (A_ik - sum over l > k of R_il R_kl) / R_kk, 16 rows at a time,
  // and their panels for Downdate.
  void Rows(std::int64_t begin, std::int64_t end) {
    const std::int64_t depth = end - begin;
    panels_.resize(static_cast<std::size_t>(begin * depth));
    pool_.For(begin / kPanel, 1, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t panel = first; panel < last; ++panel) {
        double* p = panels_.data() + panel * depth * kPanel;
        for (std::int64_t i = 0; i < kPanel; ++i) {
          for (std::int64_t k = 0; k < depth; ++k) {
            p[k * kPanel + i] = At(panel * kPanel + i, begin + k);
          }
        }
        for (std::int64_t k = depth - 1; k >= 0; --k) {
          double* row = p + k * kPanel;
          const double inverse = 1.0 / At(begin + k, begin + k);
          for (std::int64_t i = 0; i < kPanel; ++i) {
            row[i] *= inverse;
          }
          for (std::int64_t l = 0; l < k; ++l) {
            const double r = At(begin + l, begin + k);
            for (std::int64_t i = 0; i < kPanel; ++i) {
              p[l * kPanel + i] -= r * row[i];
            }
          }
        }
        for (std::int64_t i = 0; i < kPanel; ++i) {
          for (std::int64_t k = 0; k < depth; ++k) {
            At(panel * kPanel + i, begin + k) = p[k * kPanel + i];
          }
        }
      }
    });
  }

  ThreadPool& pool_;
  std::vector<double>& a_;
  std::int64_t n_;
  std::vector<double> panels_;  // [rows / 16][depth][16]
};

}  // namespace

const char* Name(ColumnOrder order) {
  switch (order) {
    case ColumnOrder::kNatural:
      return "natural";
    case ColumnOrder::kDescending:
      return "descending";
    case ColumnOrder::kGroups:
      return "groups";
  }
  return "";
}

Hessian::Hessian(std::int64_t width, std::int64_t max_tokens)
    : width_(width),
      padded_(PadToPanel(width)),
      max_tokens_(max_tokens),
      sum_(Square(padded_)),
      panels_(static_cast<std::size_t>(padded_ * max_tokens)) {}

std::uint64_t Hessian::SizeBytes(std::int64_t width, std::int64_t max_tokens) {
  const std::int64_t padded = PadToPanel(width);
  return Square(padded) * sizeof(double) +
         static_cast<std::uint64_t>(padded * max_tokens) * sizeof(float);
}

void Hessian::Add(ThreadPool& pool, const float* x, std::int64_t num_tokens) {
  NIBBLE_CHECK(num_tokens <= max_tokens_, "more tokens at once than announced");
  PackPanels(pool, x, num_tokens, width_, panels_.data());
  AddGram(pool, panels_.data(), padded_, num_tokens, sum_.data());
  num_tokens_ += num_tokens;
}

// Of 2,048 rows in whole blocks, or of one call's: that many are multiplied at once, as the sums do
// not fit the caches and are read and written once each time.
std::int64_t InputSums::BatchLines(std::int64_t max_tokens) {
  const std::int64_t blocks = std::max<std::int64_t>((max_tokens + kGramBlock - 1) / kGramBlock, 4);
  return blocks * (1 + kGramBlock / 2);
}

InputSums::InputSums(std::int64_t width, std::int64_t max_tokens, Shift shift)
    : hessian_(width, 0),
      batch_lines_(BatchLines(max_tokens)),
      shift_(shift == Shift::kNone ? 0 : hessian_.sum_.size()),
      y_(static_cast<std::size_t>(hessian_.padded_ * batch_lines_)),
      moved_(shift == Shift::kNone ? 0 : y_.size()) {}

std::uint64_t InputSums::SizeBytes(std::int64_t width, std::int64_t max_tokens, Shift shift) {
  const std::int64_t padded = PadToPanel(width);
  const std::uint64_t sum = Square(padded) * sizeof(double);
  const std::uint64_t panels =
      static_cast<std::uint64_t>(padded * BatchLines(max_tokens)) * sizeof(std::uint32_t);
  return (shift == Shift::kNone ? 1 : 2) * (sum + panels) + (shift == Shift::kSome ? sum : 0);
}

void InputSums::Add(ThreadPool& pool, const float* y, const float* x, std::int64_t num_tokens) {
  NIBBLE_CHECK(x == nullptr || !shift_.empty(), "x is for sums with a shift");
  NIBBLE_CHECK(x == nullptr || hessian_.num_tokens_ == num_shift_tokens_, "rows with x come first");
  if (batch_has_shift_ != (x != nullptr)) {
    Finish(pool);
  }
  if (x == nullptr && batch_has_shift_) {
    shift_hessian_ = hessian_;
  }
  batch_has_shift_ = x != nullptr;
  const std::int64_t width = hessian_.width_;
  const std::int64_t stride = batch_lines_ * kPanel;
  for (std::int64_t row = 0; row < num_tokens; row += kGramBlock) {
    const std::int64_t rows = std::min(kGramBlock, num_tokens - row);
    const std::int64_t pairs = (rows + 1) / 2;
    if (num_lines_ + 1 + pairs > batch_lines_) {
      Finish(pool);
    }
    PackInt16Block(pool, y + row * width, nullptr, rows, width, stride,
                   y_.data() + num_lines_ * kPanel);
    if (x != nullptr) {
      PackInt16Block(pool, x + row * width, y + row * width, rows, width, stride,
                     moved_.data() + num_lines_ * kPanel);
    }
    block_pairs_.push_back(pairs);
    num_lines_ += 1 + pairs;
  }
  hessian_.num_tokens_ += num_tokens;
  num_shift_tokens_ += x != nullptr ? num_tokens : 0;
}

void InputSums::Finish(ThreadPool& pool) {
  const std::int64_t stride = batch_lines_ * kPanel;
  AddInt16Gram(pool, y_.data(), y_.data(), hessian_.padded_, stride, block_pairs_,
               /*upper_only=*/true, hessian_.sum_.data());
  if (batch_has_shift_) {
    AddInt16Gram(pool, moved_.data(), y_.data(), hessian_.padded_, stride, block_pairs_,
                 /*upper_only=*/false, shift_.data());
  }
  block_pairs_.clear();
  num_lines_ = 0;
}

double QuadraticForm(ThreadPool& pool, std::span<const float> e, const Hessian& hessian) {
  // tr(E H E^T) = sum over i, j of (E^T E)_ij H_ij.
  const std::int64_t width = hessian.width();
  const auto rows = static_cast<std::int64_t>(e.size()) / width;
  Hessian square(width, std::min(rows, kQuadraticFormRows));
  for (std::int64_t row = 0; row < rows; row += kQuadraticFormRows) {
    square.Add(pool, e.data() + row * width, std::min(kQuadraticFormRows, rows - row));
  }
  double sum = 0.0;
  for (std::int64_t i = 0; i < width; ++i) {
    double off_diagonal = 0.0;
    for (std::int64_t j = i + 1; j < width; ++j) {
      off_diagonal += square.At(i, j) * hessian.At(i, j);
    }
    sum += square.At(i, i) * hessian.At(i, i) + 2.0 * off_diagonal;
  }
  return sum;
}

Result<DiagonalFacts> ReadDiagonal(std::span<const double> diagonal, std::int64_t num_tokens) {
  if (num_tokens == 0) {
    return Fail(ErrorCode::kInvalidArgument, "no calibration token has passed this linear");
  }
  DiagonalFacts facts;
  double sum = 0.0;
  for (const double square : diagonal) {
    sum += square;
    facts.num_dead += square == 0.0 ? 1 : 0;
  }
  if (!std::isfinite(sum)) {
    return Fail(ErrorCode::kInvalidArgument,
                "the inputs of this linear overflow: the model gives infinity or NaN on the "
                "calibration text");
  }
  facts.mean = sum > 0.0 ? sum / static_cast<double>(diagonal.size()) : 1.0;
  return facts;
}

std::vector<std::int32_t> OrderColumns(std::span<const double> diagonal,
                                       const FactorOptions& options) {
  const auto width = static_cast<std::int64_t>(diagonal.size());
  std::vector<std::int32_t> order(static_cast<std::size_t>(width));
  std::iota(order.begin(), order.end(), 0);
  const auto heavier = [&](std::int32_t a, std::int32_t b) {
    return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)];
  };
  switch (options.order) {
    case ColumnOrder::kNatural:
      break;
    case ColumnOrder::kDescending:
      std::ranges::stable_sort(order, heavier);
      break;
    case ColumnOrder::kGroups: {
      const std::int64_t size = options.group_size;
      NIBBLE_CHECK(size > 0 && width % size == 0, "groups divide the width");
      std::vector<std::int32_t> groups(static_cast<std::size_t>(width / size));
      std::iota(groups.begin(), groups.end(), 0);
      std::vector<double> mass(groups.size(), 0.0);
      for (std::int64_t i = 0; i < width; ++i) {
        mass[static_cast<std::size_t>(i / size)] += diagonal[static_cast<std::size_t>(i)];
      }
      std::ranges::stable_sort(groups, [&](std::int32_t a, std::int32_t b) {
        return mass[static_cast<std::size_t>(a)] > mass[static_cast<std::size_t>(b)];
      });
      auto at = order.begin();
      for (const std::int32_t group : groups) {
        const auto end = at + size;
        std::iota(at, end, static_cast<std::int32_t>(group * size));
        std::stable_sort(at, end, heavier);
        at = end;
      }
      break;
    }
  }
  return order;
}

Result<double> MoreDamping(double damping, int num_retries) {
  if (num_retries > kMaxRetries) {
    return Fail(ErrorCode::kInternal,
                fmt::format("the Hessian is not positive with a damping of {}", damping));
  }
  return std::max(damping, 1e-6) * 10.0;
}

std::uint64_t HessianFactor::SizeBytes(std::int64_t width) {
  const std::int64_t padded = PadToPanel(width);
  // Two triangles of floats.
  return Square(padded) * sizeof(float) +
         static_cast<std::uint64_t>(padded) * 2 * kPanel * sizeof(float);
}

std::uint64_t HessianFactor::PeakBytes(std::int64_t width) {
  const std::int64_t padded = PadToPanel(width);
  // And the matrix in double with the panels that eliminate it.
  return SizeBytes(width) + Square(padded) * sizeof(double) +
         static_cast<std::uint64_t>(padded) * kBlock * sizeof(double);
}

Result<HessianFactor> Factorize(ThreadPool& pool, const Hessian& hessian,
                                const FactorOptions& options) {
  const std::int64_t width = hessian.width();
  std::vector<double> diagonal(static_cast<std::size_t>(width));
  for (std::int64_t i = 0; i < width; ++i) {
    diagonal[static_cast<std::size_t>(i)] = hessian.At(i, i);
  }
  NIBBLE_TRY(facts, ReadDiagonal(diagonal, hessian.num_tokens()));
  HessianFactor out;
  out.width = width;
  out.padded = PadToPanel(width);
  out.num_dead = facts.num_dead;
  out.order = OrderColumns(diagonal, options);
  std::vector<double> matrix(Square(out.padded));
  const auto at = [&](std::int64_t i, std::int64_t j) -> double& {
    return matrix[static_cast<std::size_t>(i * out.padded + j)];
  };
  out.damping = options.damping;
  for (;;) {
    pool.For(out.padded, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t j = i; j < out.padded; ++j) {
          at(i, j) = j < width ? hessian.At(out.order[static_cast<std::size_t>(i)],
                                            out.order[static_cast<std::size_t>(j)])
                               : 0.0;
        }
        at(i, i) += i < width ? out.damping * facts.mean : 1.0;
      }
    });
    if (Elimination(pool, matrix, out.padded).Run()) {
      break;
    }
    NIBBLE_TRY(more, MoreDamping(out.damping, ++out.num_retries));
    out.damping = more;
  }
  const std::int64_t panels = out.padded / kPanel;
  out.ratios.resize(static_cast<std::size_t>(128 * panels * (panels + 1)));
  out.row_ratios.resize(out.ratios.size());
  out.diagonal.resize(static_cast<std::size_t>(out.padded));
  pool.For(panels, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t p = begin; p < end; ++p) {
      float* before = out.ratios.data() + HessianFactor::RatiosBegin(p);
      float* after = out.row_ratios.data() + out.RowRatiosBegin(p);
      for (std::int64_t c = 0; c < kPanel; ++c) {
        const std::int64_t i = p * kPanel + c;
        const double pivot = at(i, i);
        out.diagonal[static_cast<std::size_t>(i)] = pivot * pivot;
        for (std::int64_t j = 0; j < kPanel * (p + 1); ++j) {
          before[j * kPanel + c] = j < i ? static_cast<float>(at(j, i) / pivot) : 0.0F;
        }
        for (std::int64_t k = p * kPanel; k < out.padded; ++k) {
          after[(k - p * kPanel) * kPanel + c] =
              k > i ? static_cast<float>(at(i, k) / pivot) : 0.0F;
        }
      }
    }
  });
  return out;
}

}  // namespace nibble
