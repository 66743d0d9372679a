#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/gram_kernel.h"

namespace nibble {

// Products of tall matrices, x^T y, summed in double: Hessians, and the sweeps of solvers over
// them. Inside kGramChain rows sums are chains of fp32 fma, whose relative error is at most
// kGramChain roundings of the sum of magnitudes (1.5e-5; in practice its root, 1e-6). The order of
// all sums is fixed, so results do not depend on the ISA or on the number of threads.

/// Columns in whole panels.
constexpr std::int64_t PadToPanel(std::int64_t width) {
  return (width + kGramPanel - 1) / kGramPanel * kGramPanel;
}

/// x [num_rows, width], contiguous -> panels [PadToPanel(width) / 16][num_rows][16], the columns
/// beyond width zero.
void PackPanels(ThreadPool& pool, const float* x, std::int64_t num_rows, std::int64_t width,
                float* panels);

/// c [width, width] += x^T x of packed panels of num_rows rows, in the tiles of 16 x 16 on and
/// above the diagonal; width is a multiple of 16.
void AddGram(ThreadPool& pool, const float* panels, std::int64_t width, std::int64_t num_rows,
             double* c);

/// x, or x - minus, [num_rows, width] contiguous, rounded to bf16 -> panels
/// [PadToPanel(width) / 16][pairs of rows][16], panel_stride words apart (GramPackBf16Call).
void PackBf16Panels(ThreadPool& pool, const float* x, const float* minus, std::int64_t num_rows,
                    std::int64_t width, std::int64_t panel_stride, std::uint32_t* panels);

/// c [width, width] += a^T b of panels of num_pairs pairs of bf16 rows; chains run over
/// kGramBf16Chain rows. Products are exact, so beside the inputs' own rounding (2^-9 of each) the
/// error is that of the chains.
void AddBf16Gram(ThreadPool& pool, const std::uint32_t* a, const std::uint32_t* b,
                 std::int64_t width, std::int64_t panel_stride, std::int64_t num_pairs,
                 bool upper_only, double* c);

/// c += a^T b in the sums of AddGram, for one panel of a and any number of panels of b, b_stride
/// floats apart, on the calling thread: c [16][16 * num_panels], c_stride doubles a row.
void AddGramPanel(const float* a, const float* b, std::int64_t b_stride, std::int64_t num_panels,
                  std::int64_t num_rows, double* c, std::int64_t c_stride);

/// c[i][j] -= sum over t < depth of p[i][t] * p[j][t], in double, for the 16 x 16 tiles on and
/// above the diagonal. p: panels [width / 16][depth][16].
void Downdate(ThreadPool& pool, const double* p, std::int64_t width, std::int64_t depth, double* c,
              std::int64_t c_stride);

}  // namespace nibble
