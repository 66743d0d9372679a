#include "solve/gptq.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/gram.h"
#include "solve/grid.h"
#include "solve/row_panels.h"
#include "solve/rtn.h"

namespace nibble {
namespace {

static_assert(static_cast<std::size_t>(kGramPanel) == kLanes);
constexpr std::int64_t kPanel = kGramPanel;

// The sweep over the rows of one worker, kRowsAtOnce at a time. Columns are in the factor's order
// throughout ("positions"). It looks left: the sum over all errors so far is formed when a panel of
// columns is reached, by the kernel of Gram matrices; inside the panel column by column.
class Sweep {
 public:
  Sweep(std::span<const float> weights, const HessianFactor& factor, const GptqOptions& options,
        const GridSearch::Options& grid, QuantizedTensor& out)
      : weights_(weights),
        factor_(factor),
        search_(out.spec, grid),
        sweep_scales_(options.sweep_scales),
        out_(out),
        group_(out.spec.group_size),
        num_groups_(out.spec.num_groups()),
        block_(options.sweep_scales ? group_ : kPanel),
        w_(factor.padded),
        e_(factor.padded),
        free_(factor.padded),
        sums_(static_cast<std::size_t>((block_ + kPanel) * kRowsAtOnce)),
        grids_(static_cast<std::size_t>(num_groups_ * kPanelsAtOnce)),
        curvature_(factor.diagonal.begin(), factor.diagonal.end()) {}

  // Rows [begin, end), at most kRowsAtOnce; returns the error.
  double Run(std::int64_t begin, std::int64_t end) {
    begin_ = begin;
    rows_ = end - begin;
    w_.Read(weights_, begin, end, factor_);
    e_.Clear();
    if (!sweep_scales_) {
      ChooseStaticGrids();
    }
    double error = 0.0;
    for (std::int64_t at = 0; at < factor_.width; at += block_) {
      const std::int64_t stop = std::min(factor_.width, at + block_);
      std::ranges::fill(sums_, 0.0);
      for (std::int64_t p = at / kPanel; p * kPanel < stop; ++p) {
        AddErrors(p, e_, 0, at, SumsAt(sums_, p * kPanel - at));
      }
      if (sweep_scales_) {
        ChooseGrid(at, stop);
      }
      error += RoundColumns(at, stop);
    }
    Store();
    return error;
  }

 private:
  static double* SumsAt(std::vector<double>& sums, std::int64_t column) {
    return sums.data() + column * kRowsAtOnce;
  }
  // sums [16][rows] += ratios of panel p times the errors at positions [from, to).
  void AddErrors(std::int64_t p, const RowPanels& errors, std::int64_t from, std::int64_t to,
                 double* sums) const {
    if (to > from) {
      AddGramPanel(factor_.Ratios(p) + from * kPanel, errors.At(0, from), factor_.padded * kPanel,
                   kPanelsAtOnce, to - from, sums, kRowsAtOnce);
    }
  }
  LaneGrid& GridAt(std::int64_t group, std::int64_t panel) {
    return grids_[static_cast<std::size_t>(group * kPanelsAtOnce + panel)];
  }
  std::int64_t GroupAt(std::int64_t position) const {
    return factor_.order[static_cast<std::size_t>(position)] / group_;
  }

  // t of position 16 p + c: its weight and the ratios times the errors before it.
  Lane Target(std::int64_t p, std::int64_t c, std::int64_t panel, const RowPanels& errors,
              const double* sums) const {
    Lane t;
    const double* sum = sums + c * kRowsAtOnce + panel * kPanel;
    for (std::size_t l = 0; l < kLanes; ++l) {
      t[l] = static_cast<float>(sum[l]);
    }
    const float* ratios = factor_.Ratios(p) + p * kPanel * kPanel + c;
    for (std::int64_t k = 0; k < c; ++k) {
      const float* e = errors.At(panel, p * kPanel + k);
      for (std::size_t l = 0; l < kLanes; ++l) {
        t[l] += ratios[k * kPanel] * e[l];
      }
    }
    const float* w = w_.At(panel, p * kPanel + c);
    for (std::size_t l = 0; l < kLanes; ++l) {
      t[l] += w[l];
    }
    return t;
  }

  void ChooseStaticGrids() {
    std::vector<std::int64_t> position(static_cast<std::size_t>(factor_.width));
    for (std::int64_t i = 0; i < factor_.width; ++i) {
      position[static_cast<std::size_t>(factor_.order[static_cast<std::size_t>(i)])] = i;
    }
    std::vector<float> values(static_cast<std::size_t>(group_) * kLanes);
    std::vector<float> curvature(static_cast<std::size_t>(group_));
    for (std::int64_t g = 0; g < num_groups_; ++g) {
      for (std::int64_t panel = 0; panel < kPanelsAtOnce; ++panel) {
        for (std::int64_t c = 0; c < group_; ++c) {
          const std::int64_t i = position[static_cast<std::size_t>(g * group_ + c)];
          std::copy_n(w_.At(panel, i), kPanel, values.data() + c * kPanel);
          curvature[static_cast<std::size_t>(c)] = curvature_[static_cast<std::size_t>(i)];
        }
        GridAt(g, panel) = search_.Best(values.data(), curvature);
      }
    }
  }

  // The grid of the group at positions [at, stop), for the values that its columns would take if
  // none of them were rounded.
  void ChooseGrid(std::int64_t at, std::int64_t stop) {
    free_sums_ = sums_;
    values_.resize(static_cast<std::size_t>((stop - at) * kRowsAtOnce));
    for (std::int64_t p = at / kPanel; p * kPanel < stop; ++p) {
      double* sums = SumsAt(free_sums_, p * kPanel - at);
      AddErrors(p, free_, at, p * kPanel, sums);
      const std::int64_t columns = std::min(kPanel, stop - p * kPanel);
      for (std::int64_t panel = 0; panel < kPanelsAtOnce; ++panel) {
        for (std::int64_t c = 0; c < columns; ++c) {
          const std::int64_t i = p * kPanel + c;
          const Lane t = Target(p, c, panel, free_, sums);
          const float* w = w_.At(panel, i);
          float* e = free_.At(panel, i);
          for (std::size_t l = 0; l < kLanes; ++l) {
            e[l] = w[l] - t[l];
          }
          std::ranges::copy(t, values_.begin() + (panel * (stop - at) + i - at) * kPanel);
        }
      }
    }
    const auto curvature =
        std::span<const float>(curvature_)
            .subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(stop - at));
    for (std::int64_t panel = 0; panel < kPanelsAtOnce; ++panel) {
      GridAt(GroupAt(at), panel) =
          search_.Best(values_.data() + panel * (stop - at) * kPanel, curvature);
    }
  }

  double RoundColumns(std::int64_t at, std::int64_t stop) {
    std::array<double, kRowsAtOnce> errors{};
    for (std::int64_t p = at / kPanel; p * kPanel < stop; ++p) {
      double* sums = SumsAt(sums_, p * kPanel - at);
      AddErrors(p, e_, at, p * kPanel, sums);
      const std::int64_t columns = std::min(kPanel, stop - p * kPanel);
      for (std::int64_t panel = 0; panel < kPanelsAtOnce; ++panel) {
        for (std::int64_t c = 0; c < columns; ++c) {
          RoundColumn(p, c, panel, sums, errors.data() + panel * kPanel);
        }
      }
    }
    double sum = 0.0;
    for (std::int64_t r = 0; r < rows_; ++r) {
      sum += errors[static_cast<std::size_t>(r)];
    }
    return sum;
  }

  void RoundColumn(std::int64_t p, std::int64_t c, std::int64_t panel, const double* sums,
                   double* errors) {
    const std::int64_t i = p * kPanel + c;
    const Lane t = Target(p, c, panel, e_, sums);
    Lane codes, rounded;
    search_.Round(GridAt(GroupAt(i), panel), t, codes, rounded);
    const float* w = w_.At(panel, i);
    float* e = e_.At(panel, i);
    const double curvature = factor_.diagonal[static_cast<std::size_t>(i)];
    for (std::size_t l = 0; l < kLanes; ++l) {
      e[l] = w[l] - rounded[l];
      const auto d = static_cast<double>(t[l] - rounded[l]);
      errors[l] += curvature * d * d;
    }
    const std::int64_t column = factor_.order[static_cast<std::size_t>(i)];
    const std::int64_t count = std::min(kPanel, rows_ - panel * kPanel);
    for (std::int64_t l = 0; l < count; ++l) {
      const std::int64_t row = begin_ + panel * kPanel + l;
      out_.codes[static_cast<std::size_t>(row * factor_.width + column)] =
          static_cast<std::uint8_t>(codes[static_cast<std::size_t>(l)]);
    }
  }

  void Store() {
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t g = 0; g < num_groups_; ++g) {
        const LaneGrid& grid = GridAt(g, r / kPanel);
        const auto to = static_cast<std::size_t>((begin_ + r) * num_groups_ + g);
        const auto lane = static_cast<std::size_t>(r % kPanel);
        out_.scales[to] = grid.scale[lane];
        if (out_.spec.has_zero_points) {
          out_.zero_points[to] = static_cast<std::uint8_t>(grid.zero[lane]);
        }
      }
    }
  }

  std::span<const float> weights_;
  const HessianFactor& factor_;
  GridSearch search_;
  bool sweep_scales_;
  QuantizedTensor& out_;
  std::int64_t group_, num_groups_;
  std::int64_t block_;  // positions whose sums over earlier errors are formed together
  std::int64_t begin_ = 0, rows_ = 0;
  RowPanels w_, e_;  // weights; weights - rounded
  RowPanels free_;   // weights - what they would be if nothing in the group were rounded
  std::vector<double> sums_, free_sums_;  // [block][kRowsAtOnce]
  std::vector<float> values_;             // of a group: [panel][position][16]
  std::vector<LaneGrid> grids_;           // [num_groups][kPanelsAtOnce]
  std::vector<float> curvature_;          // R_ii^2
};

Result<void> Check(std::span<const float> weights, const HessianFactor& factor,
                   const GptqOptions& options) {
  NIBBLE_TRY_VOID(CheckGroups(options, factor.width));
  NIBBLE_CHECK(weights.size() % static_cast<std::size_t>(factor.width) == 0, "whole rows");
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i])) {
      return NotFinite(static_cast<std::int64_t>(i), factor.width);
    }
  }
  return {};
}

}  // namespace

Result<void> CheckGroups(const GptqOptions& options, std::int64_t width) {
  const std::int64_t group = options.spec.group_size;
  if (group <= 0 || width % group != 0 ||
      (options.sweep_scales && group % kPanel != 0 && group != width)) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("group size {} does not divide the width {}, or is no multiple of {}",
                            group, width, kPanel));
  }
  NIBBLE_CHECK(options.spec.cols == width, "a factor of another width");
  return {};
}

tl::unexpected<Error> NotFinite(std::int64_t index, std::int64_t width) {
  return Fail(ErrorCode::kCorruptFile, fmt::format("the weight at row {}, column {} is not finite",
                                                   index / width, index % width));
}

Result<QuantizedTensor> QuantizeGptq(ThreadPool& pool, std::span<const float> weights,
                                     const HessianFactor& factor, const GptqOptions& options,
                                     SolveReport* report) {
  NIBBLE_TRY_VOID(Check(weights, factor, options));
  const auto rows = static_cast<std::int64_t>(weights.size()) / factor.width;
  const GridSearch::Options grid = OptionsFor(options.spec, weights,
                                              {.scale_dtype = options.scale_dtype,
                                               .search = options.search_scale,
                                               .both_signs = options.both_signs,
                                               .scale_divisor = options.scale_divisor});
  QuantizedTensor out{.spec = options.spec, .scale_divisor = grid.scale_divisor};
  out.spec.rows = rows;
  const auto groups = static_cast<std::size_t>(rows * out.spec.num_groups());
  out.codes.resize(weights.size());
  out.scales.resize(groups);
  out.zero_points.resize(out.spec.has_zero_points ? groups : 0);
  const std::int64_t parts = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  std::vector<double> errors(static_cast<std::size_t>(parts));
  pool.For(parts, 1, [&](std::int64_t begin, std::int64_t end, int) {
    Sweep sweep(weights, factor, options, grid, out);
    for (std::int64_t part = begin; part < end; ++part) {
      errors[static_cast<std::size_t>(part)] =
          sweep.Run(part * kRowsAtOnce, std::min(rows, (part + 1) * kRowsAtOnce));
    }
  });
  if (report != nullptr) {
    report->error = 0.0;
    for (const double error : errors) {
      report->error += error;
    }
    report->energy = OutputError(pool, weights, factor);
  }
  return out;
}

double OutputError(ThreadPool& pool, std::span<const float> e, const HessianFactor& factor) {
  const auto rows = static_cast<std::int64_t>(e.size()) / factor.width;
  const std::int64_t parts = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  std::vector<double> errors(static_cast<std::size_t>(parts));
  pool.For(parts, 1, [&](std::int64_t first, std::int64_t last, int) {
    RowPanels panels(factor.padded);
    std::vector<double> sums(static_cast<std::size_t>(kPanel * kRowsAtOnce));
    for (std::int64_t part = first; part < last; ++part) {
      const std::int64_t begin = part * kRowsAtOnce;
      const std::int64_t end = std::min(rows, begin + kRowsAtOnce);
      panels.Read(e, begin, end, factor);
      double sum = 0.0;
      for (std::int64_t p = 0; p < factor.padded / kPanel; ++p) {
        std::ranges::fill(sums, 0.0);
        AddGramPanel(factor.Ratios(p), panels.At(0, 0), factor.padded * kPanel, kPanelsAtOnce,
                     (p + 1) * kPanel, sums.data(), kRowsAtOnce);
        for (std::int64_t c = 0; c < kPanel; ++c) {
          const std::int64_t i = p * kPanel + c;
          for (std::int64_t r = 0; r < end - begin; ++r) {
            const double t = sums[static_cast<std::size_t>(c * kRowsAtOnce + r)] +
                             static_cast<double>(panels.At(r / kPanel, i)[r % kPanel]);
            sum += factor.diagonal[static_cast<std::size_t>(i)] * t * t;
          }
        }
      }
      errors[static_cast<std::size_t>(part)] = sum;
    }
  });
  double sum = 0.0;
  for (const double error : errors) {
    sum += error;
  }
  return sum;
}

}  // namespace nibble
