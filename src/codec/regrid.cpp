#include "codec/regrid.h"

#include <fmt/format.h>

#include <cmath>

#include "codec/encode.h"

namespace nibble {
namespace {

// Walks the groups of the new grid.
class Walk {
 public:
  Walk(const QuantizedTensor& from, const WeightSpec& to, DType scales)
      : from_(from), scales_(scales) {
    out_.spec = to;
    out_.spec.rows = from.spec.rows;
    out_.spec.cols = from.spec.cols;
    out_.scale_divisor = from.scale_divisor;
    out_.spec.has_f32_scales = to.kind != CodecKind::kFloat && scales == DType::kF32;
  }

  Result<QuantizedTensor> Go() {
    const WeightSpec& old = from_.spec;
    WeightSpec& spec = out_.spec;
    if (spec.kind == CodecKind::kFloat) {
      return Values();
    }
    if (old.kind == CodecKind::kFloat) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} values have no codes: quantize them", old.ToString()));
    }
    spec.group_size = std::min(spec.group_size, spec.cols);
    if (spec.group_size < 1 || old.group_size % spec.group_size != 0) {
      return Fail(
          ErrorCode::kInvalidArgument,
          fmt::format("groups of {} do not divide groups of {}", spec.group_size, old.group_size));
    }
    const bool tables = old.kind == CodecKind::kCodebook || spec.kind == CodecKind::kCodebook;
    const bool same = old.kind == spec.kind && old.codebook == spec.codebook;
    if ((tables && !same) || (old.kind == CodecKind::kMinimum && same && old.bits > spec.bits)) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} does not become {}", old.ToString(), spec.ToString()));
    }
    const auto groups = spec.num_groups();
    out_.codes.reserve(from_.codes.size());
    for (std::int64_t row = 0; row < spec.rows; ++row) {
      for (std::int64_t group = 0; group < groups; ++group) {
        NIBBLE_TRY_VOID(Group(row, group * spec.group_size));
      }
    }
    return std::move(out_);
  }

 private:
  tl::unexpected<Error> Wrong(std::int64_t row, std::int64_t col, const std::string& what) const {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("row {}, column {}: {}", row, col, what));
  }

  bool Holds(float value) const { return RoundToDType(value, scales_) == value; }

  Result<QuantizedTensor> Values() {
    out_.values = Dequantize(from_);
    out_.spec.group_size = 0;
    const DType dtype = out_.spec.float_dtype;
    for (std::size_t i = 0; i < out_.values.size(); ++i) {
      if (RoundToDType(out_.values[i], dtype) != out_.values[i]) {
        const auto at = static_cast<std::int64_t>(i);
        return Wrong(at / from_.spec.cols, at % from_.spec.cols,
                     fmt::format("{} is no {} number", out_.values[i], Name(dtype)));
      }
    }
    return std::move(out_);
  }

  Result<void> Group(std::int64_t row, std::int64_t begin) {
    const WeightSpec& old = from_.spec;
    const WeightSpec& spec = out_.spec;
    const auto from = static_cast<std::size_t>(row * old.num_groups() + begin / old.group_size);
    const float scale = from_.scales[from];
    if (!Holds(scale)) {
      return Wrong(row, begin, fmt::format("the scale {} is no {} number", scale, Name(scales_)));
    }
    out_.scales.push_back(scale);
    // What is added to each code, so that code + shift counts from zero.
    int zero = 0;  // of the old codes: value = (code - zero) * scale
    if (old.kind == CodecKind::kUniform) {
      zero = old.has_zero_points ? from_.zero_points[from] : 1 << (old.bits - 1);
    } else if (old.kind == CodecKind::kMinimum && spec.kind == CodecKind::kUniform) {
      const float minimum = from_.minima[from];
      const float steps = scale == 0.0F ? 0.0F : std::nearbyint(-minimum / scale);
      if (std::fabs(steps) > 1e6F || steps * scale != -minimum) {
        return Wrong(row, begin,
                     fmt::format("the minimum {} is no whole multiple of the scale {}: it needs a "
                                 "format with float minima",
                                 minimum, scale));
      }
      zero = static_cast<int>(steps);
    }
    int shift = 0;
    if (spec.kind == CodecKind::kUniform) {
      NIBBLE_TRY(moved, Shift(row, begin, zero));
      shift = moved;
    } else if (spec.kind == CodecKind::kMinimum) {
      const bool kept = old.kind == CodecKind::kMinimum;
      const float minimum = kept ? from_.minima[from] : -(static_cast<float>(zero) * scale);
      if (!Holds(minimum)) {
        return Wrong(row, begin,
                     fmt::format("the minimum {} is no {} number", minimum, Name(scales_)));
      }
      out_.minima.push_back(minimum);
    }
    return Codes(row, begin, shift, zero);
  }

  // Adds the zero point of a uniform group and says what to add to its codes.
  Result<int> Shift(std::int64_t row, std::int64_t begin, int zero) {
    const WeightSpec& spec = out_.spec;
    if (!spec.has_zero_points) {
      return (1 << (spec.bits - 1)) - zero;
    }
    // Zero points stay where they are if they fit; a middle of another width may not.
    const int top = (1 << spec.bits) - 1;
    if (zero < 0 || zero > top) {
      return Wrong(row, begin,
                   fmt::format("the zero point {} does not fit {} bits", zero, spec.bits));
    }
    out_.zero_points.push_back(static_cast<std::uint8_t>(zero));
    return 0;
  }

  Result<void> Codes(std::int64_t row, std::int64_t begin, int shift, int zero) {
    const WeightSpec& spec = out_.spec;
    const int top = (1 << spec.bits) - 1;
    const std::int64_t end = std::min(spec.cols, begin + spec.group_size);
    for (std::int64_t col = begin; col < end; ++col) {
      const int code = from_.codes[static_cast<std::size_t>(row * spec.cols + col)];
      const int moved = code + shift;
      if (moved < 0 || moved > top) {
        return Wrong(row, col,
                     fmt::format("{} steps from zero do not fit {}", code - zero, spec.ToString()));
      }
      out_.codes.push_back(static_cast<std::uint8_t>(moved));
    }
    return {};
  }

  const QuantizedTensor& from_;
  DType scales_;
  QuantizedTensor out_;
};

}  // namespace

Result<QuantizedTensor> Regrid(const QuantizedTensor& rows, const WeightSpec& to, DType scales) {
  return Walk(rows, to, scales).Go();
}

}  // namespace nibble
