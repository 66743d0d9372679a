// Weights as compressed-tensors keeps them:
//   pack-quantized, W [out, in]:
//     W_packed     I32 [out, ceil(in * bits / 32)]      codes of a row, a stream of bits along in
//     W_zero_point I32 [ceil(out * bits / 32), groups]  asymmetric: a stream along out
//     W_scale      [out, groups]
//     W_shape      I64 [2]                              out, in
//   float-quantized: W F8_E4M3 [out, in], W_scale [1], [out, 1] or [ceil(out / 128), ceil(in /
//   128)] mxfp4-, nvfp4-pack-quantized:
//     W_packed       U8 [out, in / 2]        two e2m1 codes a byte, the first in the low nibble
//     W_scale        U8 [out, in / 32], scale 2^(byte - 127), or F8_E4M3 [out, in / 16]
//     W_global_scale F32 [1]                 NVFP4: scale = W_scale / W_global_scale
// One scale for the matrix ("tensor"): W_scale [1].
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "checkpoint/code_words.h"
#include "checkpoint/folder_format.h"
#include "checkpoint/tensor_weight.h"

namespace nibble {
namespace {

class PackEncoder final : public WeightEncoder {
 public:
  PackEncoder(WeightToWrite weight, DType scale_dtype)
      : weight_(std::move(weight)), scale_dtype_(scale_dtype) {}

  std::vector<Head> Heads() const override {
    const std::int64_t dims[2] = {weight_.spec.rows, weight_.spec.cols};
    return {{.entry = {.name = weight_.name + "_shape", .dtype = DType::kI64, .shape = Shape{2}},
             .bytes = {reinterpret_cast<const char*>(dims), sizeof dims}}};
  }
  std::vector<SafetensorsEntry> Parts() const override {
    const WeightSpec& spec = weight_.spec;
    std::vector<SafetensorsEntry> parts = {
        {.name = weight_.name + "_packed",
         .dtype = DType::kI32,
         .shape = Shape{spec.rows, CodeWords(spec.cols, spec.bits)}}};
    if (spec.has_zero_points) {
      parts.push_back({.name = weight_.name + "_zero_point",
                       .dtype = DType::kI32,
                       .shape = Shape{CodeWords(spec.rows, spec.bits), spec.num_groups()}});
    }
    parts.push_back({.name = weight_.name + "_scale",
                     .dtype = scale_dtype_,
                     .shape = spec.has_one_scale ? Shape{1} : Shape{spec.rows, spec.num_groups()}});
    return parts;
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    const WeightSpec& spec = weight_.spec;
    if (!spec.has_one_scale) {
      AppendFloats(rows.scales, scale_dtype_, scales_);
    } else if (scales_.empty()) {
      AppendFloats(std::span(rows.scales).first(1), scale_dtype_, scales_);
    }
    zero_points_.insert(zero_points_.end(), rows.zero_points.begin(), rows.zero_points.end());
    return RowStreams(rows.codes, spec.cols, spec.bits);
  }
  std::vector<std::string> Finish() override {
    std::vector<std::string> out = {""};
    if (weight_.spec.has_zero_points) {
      const std::int64_t groups = weight_.spec.num_groups();
      std::vector<std::uint32_t> words(
          static_cast<std::size_t>(CodeWords(weight_.spec.rows, weight_.spec.bits) * groups));
      for (std::int64_t row = 0; row < weight_.spec.rows; ++row) {
        for (std::int64_t group = 0; group < groups; ++group) {
          PutCode(std::span(words).subspan(static_cast<std::size_t>(group)), groups,
                  weight_.spec.bits, row,
                  zero_points_[static_cast<std::size_t>(row * groups + group)]);
        }
      }
      out.emplace_back(reinterpret_cast<const char*>(words.data()), words.size() * 4);
    }
    out.push_back(std::move(scales_));
    scales_.clear();
    zero_points_.clear();
    return out;
  }
  DType ScaleDType() const override { return scale_dtype_; }

 private:
  WeightToWrite weight_;
  DType scale_dtype_;
  std::string scales_;
  std::vector<std::uint8_t> zero_points_;
};

class Fp8Encoder final : public WeightEncoder {
 public:
  Fp8Encoder(WeightToWrite weight, DType scale_dtype)
      : weight_(std::move(weight)),
        scale_dtype_(scale_dtype),
        block_rows_(weight_.spec.has_one_scale                     ? weight_.spec.rows
                    : weight_.spec.group_size >= weight_.spec.cols ? 1
                                                                   : kFp8Block) {}

  std::vector<SafetensorsEntry> Parts() const override {
    const WeightSpec& spec = weight_.spec;
    return {{.name = weight_.name, .dtype = DType::kF8E4M3, .shape = Shape{spec.rows, spec.cols}},
            {.name = weight_.name + "_scale",
             .dtype = scale_dtype_,
             .shape = spec.has_one_scale
                          ? Shape{1}
                          : Shape{(spec.rows + block_rows_ - 1) / block_rows_, spec.num_groups()}}};
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    const auto groups = static_cast<std::size_t>(weight_.spec.num_groups());
    for (std::int64_t row = 0; row < rows.spec.rows; ++row, ++next_row_) {
      const auto scales =
          std::span(rows.scales).subspan(static_cast<std::size_t>(row) * groups, groups);
      if (next_row_ % block_rows_ == 0) {
        block_.assign(scales.begin(), scales.end());
        AppendFloats(scales, scale_dtype_, scales_);
      } else if (!std::ranges::equal(scales, block_)) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{}: row {} has other scales than its block of {} rows",
                                weight_.name, next_row_, block_rows_));
      }
    }
    return std::string(reinterpret_cast<const char*>(rows.codes.data()), rows.codes.size());
  }
  std::vector<std::string> Finish() override {
    std::vector<std::string> out = {"", std::move(scales_)};
    scales_.clear();
    next_row_ = 0;
    return out;
  }
  DType ScaleDType() const override { return scale_dtype_; }

 private:
  WeightToWrite weight_;
  DType scale_dtype_;
  std::int64_t block_rows_;  // rows that share their scales
  std::int64_t next_row_ = 0;
  std::vector<float> block_;
  std::string scales_;
};

// MXFP4 and NVFP4.
class Fp4Encoder final : public WeightEncoder {
 public:
  explicit Fp4Encoder(WeightToWrite weight)
      : weight_(std::move(weight)), nv_(weight_.spec.scale_grid == ScaleGrid::kE4M3) {}

  std::vector<SafetensorsEntry> Parts() const override {
    const WeightSpec& spec = weight_.spec;
    std::vector<SafetensorsEntry> parts = {{.name = weight_.name + "_packed",
                                            .dtype = DType::kU8,
                                            .shape = Shape{spec.rows, spec.cols / 2}},
                                           {.name = weight_.name + "_scale",
                                            .dtype = nv_ ? DType::kF8E4M3 : DType::kU8,
                                            .shape = Shape{spec.rows, spec.num_groups()}}};
    if (nv_) {
      parts.push_back(
          {.name = weight_.name + "_global_scale", .dtype = DType::kF32, .shape = Shape{1}});
    }
    return parts;
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    if (!scales_.empty() && rows.scale_divisor != divisor_) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}: its rows divide their scales by {} and {}", weight_.name,
                              divisor_, rows.scale_divisor));
    }
    divisor_ = rows.scale_divisor;
    for (const float scale : rows.scales) {  // on the grid: Validate
      scales_ += static_cast<char>(nv_ ? NearestCode(Codebook::kFp8E4M3, scale * divisor_)
                                       : std::ilogb(scale) + 127);
    }
    std::string bytes;
    bytes.reserve(rows.codes.size() / 2);
    for (std::size_t i = 0; i < rows.codes.size(); i += 2) {
      bytes += static_cast<char>(rows.codes[i] | rows.codes[i + 1] << 4);
    }
    return bytes;
  }
  std::vector<std::string> Finish() override {
    std::vector<std::string> out = {"", std::move(scales_)};
    scales_.clear();
    if (nv_) {
      AppendFloats(std::span(&divisor_, 1), DType::kF32, out.emplace_back());
    }
    return out;
  }
  DType ScaleDType() const override { return DType::kF32; }  // the grid is narrower

 private:
  WeightToWrite weight_;
  bool nv_;
  std::string scales_;
  float divisor_ = 1.0F;
};

}  // namespace

Result<std::unique_ptr<WeightEncoder>> MakeCompressedTensorsEncoder(const WeightToWrite& weight,
                                                                    const EncoderOptions& options) {
  const WeightSpec& spec = weight.spec;
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  if (spec.codebook == Codebook::kFp8E4M3) {
    if (spec.group_size < spec.cols && spec.group_size != kFp8Block) {
      return wrong(fmt::format("FP8 in groups of {}: blocks of 128 and whole rows can be written",
                               spec.group_size));
    }
    return std::make_unique<Fp8Encoder>(weight, options.scale_dtype);
  }
  const std::int64_t fp4_group = spec.scale_grid == ScaleGrid::kPowersOfTwo ? 32
                                 : spec.scale_grid == ScaleGrid::kE4M3      ? 16
                                                                            : 0;
  if (spec.codebook == Codebook::kE2M1 && fp4_group != 0) {
    if (spec.group_size != fp4_group || spec.cols % fp4_group != 0) {
      return wrong(fmt::format("{} comes in groups of {}, not of {} in rows of {}",
                               fp4_group == 32 ? "MXFP4" : "NVFP4", fp4_group, spec.group_size,
                               spec.cols));
    }
    return std::make_unique<Fp4Encoder>(weight);
  }
  if (spec.kind != CodecKind::kUniform) {
    return wrong(
        fmt::format("{} has no place in compressed-tensors, which stores uniform integers, "
                    "FP8, MXFP4 and NVFP4",
                    spec.ToString()));
  }
  if (spec.has_one_scale && spec.has_zero_points) {
    return wrong("one scale for the matrix comes without zero points");
  }
  if (spec.group_size < 1 || spec.cols % spec.group_size != 0) {
    return wrong(
        fmt::format("groups of {} do not divide its width of {}", spec.group_size, spec.cols));
  }
  return std::make_unique<PackEncoder>(weight, options.scale_dtype);
}

}  // namespace nibble
