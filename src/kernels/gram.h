#pragma once

#include <cstdint>
#include <span>

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

/// A block of x, or x - minus, [num_rows, width] contiguous, num_rows at most kGramBlock -> panels
/// [PadToPanel(width) / 16][1 + pairs of rows][16], panel_stride words apart (GramPackInt16Call).
/// Values are rounded by at most 2^-15 of the root of their column's energy in the block.
void PackInt16Block(ThreadPool& pool, const float* x, const float* minus, std::int64_t num_rows,
                    std::int64_t width, std::int64_t panel_stride, std::uint32_t* panels);

/// c [width, width] += a^T b of blocks of so many pairs of rows, one behind the other in each
/// panel. Sums of a block are exact, and blocks are added up in double: beside the rounding of
/// values there is next to no error.
void AddInt16Gram(ThreadPool& pool, const std::uint32_t* a, const std::uint32_t* b,
                  std::int64_t width, std::int64_t panel_stride,
                  std::span<const std::int64_t> block_pairs, bool upper_only, double* c);

/// c += a^T b in the sums of AddGram, for one panel of a and any number of panels of b, b_stride
/// floats apart, on the calling thread: c [16][16 * num_panels], c_stride doubles a row.
void AddGramPanel(const float* a, const float* b, std::int64_t b_stride, std::int64_t num_panels,
                  std::int64_t num_rows, double* c, std::int64_t c_stride);

/// c[i][j] -= sum over t < depth of p[i][t] * p[j][t], in double, for the 16 x 16 tiles on and
/// above the diagonal. p: panels [width / 16][depth][16].
void Downdate(ThreadPool& pool, const double* p, std::int64_t width, std::int64_t depth, double* c,
              std::int64_t c_stride);

}  // namespace nibble
