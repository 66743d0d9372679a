#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/thread_pool.h"
#include "codec/quantized_tensor.h"
#include "solve/grid.h"
#include "tensor/tensor.h"

namespace nibble {

/// Round-to-nearest onto a uniform grid.
struct RtnOptions {
  int bits = 4;                     // 2..8
  std::int64_t group_size = 64;     // columns that share a scale; 0: the whole row
  bool symmetric = true;            // else an integer zero point a group
  bool search_scale = true;         // move the range where that lowers the weighted error
  DType scale_dtype = DType::kF16;  // scales are rounded to it before codes are chosen
};

/// weights: [rows * cols], row-major. Per group, with qmax = 2^bits - 1:
///   symmetric:   scale = 2 * absmax / qmax, zero = 2^(bits-1)
///   asymmetric:  scale = (max - min) / qmax with min <= 0 <= max,
///                zero = clamp(round(-min / scale), 0, qmax)
///   code = clamp(round(w / scale) + zero, 0, qmax)
/// and with search_scale the range is multiplied by the factor of a fixed list (0.70 to 1.10) that
/// gives the least sum of (mean(w^2) + w^2) * error^2 over the group; ties take absmax, then the
/// wider range. Without activation statistics llama.cpp weights an error by w^2 (make_qx_quants),
/// with them by sqrt(sigma^2 + w^2): large weights tell which columns matter, and sigma^2 keeps the
/// small ones from counting for nothing. Least squares alone clips the largest weights to make many
/// small ones finer; but clipping always errs towards zero and adds up over a dot product, while
/// rounding errors cancel. The result does not depend on how rows are split over calls. Errors:
/// kInvalidArgument for a group that does not divide cols, or bits outside 2..8; kCorruptFile for a
/// weight that is not finite (the message says where).
Result<QuantizedTensor> QuantizeRtn(std::span<const float> weights, std::int64_t rows,
                                    std::int64_t cols, const RtnOptions& options);

/// Round-to-nearest onto the grids of `spec` (its rows say nothing) whose scales are searched with
/// the mean square of each input channel as weights, as solve/grid.h says: what a layer's output
/// loses if errors of its columns do not meet. importance: [spec.cols], not negative.
/// search_scale: off, absmax. Scales of a grid that the matrix has as a whole are those of
/// OptionsFor. Errors: those of QuantizeRtn.
Result<QuantizedTensor> QuantizeWeighted(ThreadPool& pool, std::span<const float> weights,
                                         const WeightSpec& spec, std::span<const float> importance,
                                         DType scale_dtype, bool search_scale = true,
                                         float scale_divisor = 0.0F);

/// What ScaleGrid::kE4M3 divides scales by, so that they use the range of e4m3: 448 * 6 / absmax.
float ScaleDivisorOf(float absmax);
/// The largest magnitude; NaN counts for nothing.
float AbsMaxOf(std::span<const float> weights);

/// Options of a search for this matrix: what is one for all of its rows is settled by all weights.
///   ScaleGrid::kE4M3 and a scale_divisor of 0: that of their absmax
///   has_one_scale: absmax over the codebook's largest value, or what QuantizeRtn finds for one
///   group
GridSearch::Options OptionsFor(const WeightSpec& spec, std::span<const float> weights,
                               GridSearch::Options options);

/// Round-to-nearest onto a codebook with f32 absmax scales, as codec/encode.h says. Errors: those
/// of QuantizeRtn.
Result<QuantizedTensor> QuantizeToCodebook(std::span<const float> weights, std::int64_t rows,
                                           std::int64_t cols, Codebook codebook,
                                           std::int64_t group_size);

/// Round-to-nearest onto FP8: scale = absmax / 448 (e5m2: 57344), rounded to scale_dtype before
/// codes are chosen. group_size >= cols: a scale a row; else one for group_size rows and as many
/// columns, counted from the first row of the call. Errors: kCorruptFile for a weight that is not
/// finite.
Result<QuantizedTensor> QuantizeFp8(std::span<const float> weights, std::int64_t rows,
                                    std::int64_t cols, std::int64_t group_size, DType scale_dtype,
                                    Codebook codebook = Codebook::kFp8E4M3);

}  // namespace nibble
