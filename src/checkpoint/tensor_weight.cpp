#include "checkpoint/tensor_weight.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint_base.h"
#include "checkpoint/code_words.h"

namespace nibble {
namespace {

// The tensors of one weight. Which are set depends on how it is kept.
struct Parts {
  std::optional<Located> plain;  // values, int8 codes of int-quantized, or FP8 codes
  std::optional<Located> packed, scale, zero_point, shape;
  std::optional<Located> global_scale;  // of NVFP4
  // Words hold whole codes and spare bits, as compressed-tensors packed 3, 5, 6 and 7 bits until
  // May 2026; else one stream of bits.
  bool whole_codes = false;

  /// What there is, in a fixed order.
  std::vector<Located> All() const {
    std::vector<Located> out;
    for (const auto* part : {&plain, &packed, &scale, &global_scale, &zero_point, &shape}) {
      if (*part) {
        out.push_back(**part);
      }
    }
    return out;
  }
};

// What is looked for, and what the config and errors say of it.
struct Wanted {
  const ExpectedWeight& weight;
  const CompressedTensorsScheme* scheme;
  const std::string& folder;

  auto Corrupt(const std::string& what) const {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: tensor {}: {}", folder, weight.name, what));
  }
};

bool IsScaleType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

Result<WeightSpec> SpecOf(const Wanted& of, Parts& parts) {
  const ExpectedWeight& wanted = of.weight;
  const auto corrupt = [&](const std::string& what) { return of.Corrupt(what); };
  WeightSpec spec{.rows = wanted.rows, .cols = wanted.cols};
  if (!parts.packed && !parts.scale) {
    if (parts.zero_point || parts.shape) {
      return corrupt("weight_scale is missing");
    }
    const SafetensorsEntry& entry = *parts.plain->entry;
    const Shape expected = wanted.rows == 1 && entry.shape.rank() == 1
                               ? Shape{wanted.cols}
                               : Shape{wanted.rows, wanted.cols};
    if (entry.shape != expected) {
      return corrupt(fmt::format("shape {}, config.json asks for {}", entry.shape.ToString(),
                                 expected.ToString()));
    }
    if (entry.dtype != DType::kF32 && entry.dtype != DType::kF16 && entry.dtype != DType::kBF16) {
      return Fail(ErrorCode::kUnsupported, fmt::format("{}: tensor {} is {} without scales",
                                                       of.folder, wanted.name, Name(entry.dtype)));
    }
    spec.float_dtype = entry.dtype;
    return spec;
  }
  if (!parts.scale) {
    return corrupt("weight_scale is missing");
  }
  spec.kind = CodecKind::kUniform;
  spec.has_zero_points = parts.zero_point.has_value();
  if (parts.packed) {
    const SafetensorsEntry& packed = *parts.packed->entry;
    if (packed.dtype != DType::kI32 || packed.shape.rank() != 2 || packed.shape[0] != wanted.rows) {
      return corrupt(fmt::format("weight_packed is {} {}, expected I32 with {} rows",
                                 Name(packed.dtype), packed.shape.ToString(), wanted.rows));
    }
    // The config settles the width; the number of words, how codes lie in them.
    spec.bits = of.scheme != nullptr && !of.scheme->is_fp8     ? of.scheme->bits
                : packed.shape[1] == CodeWords(wanted.cols, 8) ? 8
                                                               : 4;
    const bool stream = packed.shape[1] == CodeWords(wanted.cols, spec.bits);
    parts.whole_codes = !stream && packed.shape[1] == WholeCodeWords(wanted.cols, spec.bits);
    if (!stream && !parts.whole_codes) {
      return corrupt(fmt::format("weight_packed has {} words a row; {} columns of {} bits take {}",
                                 packed.shape[1], wanted.cols, spec.bits,
                                 CodeWords(wanted.cols, spec.bits)));
    }
    if (parts.shape) {
      const TensorView view = parts.shape->view();
      std::int64_t dims[2] = {0, 0};
      if (view.dtype != DType::kI64 || view.bytes.size() != sizeof dims) {
        return corrupt("weight_shape is not two I64");
      }
      NIBBLE_TRY_VOID(GuardMappedReads(wanted.name, [&]() -> Result<void> {
        std::memcpy(dims, view.bytes.data(), sizeof dims);
        return {};
      }));
      if (dims[0] != wanted.rows || dims[1] != wanted.cols) {
        return corrupt(fmt::format("weight_shape says [{}, {}], config.json asks for [{}, {}]",
                                   dims[0], dims[1], wanted.rows, wanted.cols));
      }
    }
  } else {
    const SafetensorsEntry& codes = *parts.plain->entry;
    if (codes.dtype != DType::kI8 || codes.shape != Shape{wanted.rows, wanted.cols}) {
      return corrupt(fmt::format("weight is {} {}, expected I8 [{}, {}]", Name(codes.dtype),
                                 codes.shape.ToString(), wanted.rows, wanted.cols));
    }
    spec.bits = 8;
  }
  const SafetensorsEntry& scale = *parts.scale->entry;
  spec.has_one_scale = of.scheme != nullptr && of.scheme->has_one_scale &&
                       scale.shape.rank() <= 2 && scale.shape.num_elements() == 1 &&
                       !parts.zero_point;
  if (spec.has_one_scale && IsScaleType(scale.dtype)) {
    spec.group_size = wanted.cols;
    spec.has_f32_scales = scale.dtype == DType::kF32;
    return spec;
  }
  const std::int64_t groups = scale.shape.rank() == 2 ? scale.shape[1] : 0;
  if (scale.shape.rank() != 2 || scale.shape[0] != wanted.rows || groups < 1 ||
      groups > wanted.cols || wanted.cols % groups != 0 || !IsScaleType(scale.dtype)) {
    return corrupt(
        fmt::format("weight_scale is {} {}, expected float [{}, groups] with groups that divide {}",
                    Name(scale.dtype), scale.shape.ToString(), wanted.rows, wanted.cols));
  }
  spec.group_size = wanted.cols / groups;
  spec.has_f32_scales = scale.dtype == DType::kF32;
  if (parts.zero_point) {
    const SafetensorsEntry& zero = *parts.zero_point->entry;
    const std::int64_t words = parts.whole_codes ? WholeCodeWords(wanted.rows, spec.bits)
                                                 : CodeWords(wanted.rows, spec.bits);
    const Shape expected = Shape{parts.packed ? words : wanted.rows, groups};
    if (zero.dtype != (parts.packed ? DType::kI32 : DType::kI8) || zero.shape != expected) {
      return corrupt(fmt::format("weight_zero_point is {} {}, expected {}", Name(zero.dtype),
                                 zero.shape.ToString(), expected.ToString()));
    }
  }
  return spec;
}

Result<WeightSpec> Fp8SpecOf(const Wanted& of, const Parts& parts) {
  const ExpectedWeight& wanted = of.weight;
  const SafetensorsEntry& codes = *parts.plain->entry;
  const SafetensorsEntry& scale = *parts.scale->entry;
  const auto corrupt = [&](const char* which, const SafetensorsEntry& found,
                           const std::string& expected) {
    return of.Corrupt(fmt::format("{} is {} {}, expected {}", which, Name(found.dtype),
                                  found.shape.ToString(), expected));
  };
  const Shape whole{wanted.rows, wanted.cols};
  if (codes.shape != whole || parts.packed || parts.zero_point || parts.shape) {
    return corrupt("weight", codes,
                   fmt::format("F8_E4M3 {} without zero points", whole.ToString()));
  }
  WeightSpec spec{.rows = wanted.rows,
                  .cols = wanted.cols,
                  .kind = CodecKind::kCodebook,
                  .bits = 8,
                  .group_size = wanted.cols,
                  .has_f32_scales = scale.dtype == DType::kF32,
                  .codebook = Codebook::kFp8E4M3};
  if (!IsScaleType(scale.dtype)) {
    return corrupt("weight_scale", scale, "F32, F16 or BF16");
  }
  const Shape blocks{(wanted.rows + kFp8Block - 1) / kFp8Block,
                     (wanted.cols + kFp8Block - 1) / kFp8Block};
  const bool one = scale.shape.num_elements() == 1 && scale.shape.rank() <= 2;
  const bool rows = scale.shape == Shape{wanted.rows} || scale.shape == Shape{wanted.rows, 1};
  if (!one && !rows && scale.shape == blocks) {
    spec.group_size = std::min(kFp8Block, wanted.cols);
  } else if (!one && !rows) {
    return corrupt("weight_scale", scale,
                   fmt::format("one float, [{}, 1] or {}", wanted.rows, blocks.ToString()));
  }
  spec.has_one_scale = one;
  return spec;
}

// MXFP4 and NVFP4, as the config says.
Result<WeightSpec> Fp4SpecOf(const Wanted& of, const Parts& parts) {
  const ExpectedWeight& wanted = of.weight;
  const std::int64_t group = of.scheme->group_size;
  const bool nv = group == 16;
  const auto corrupt = [&](const std::string& what) { return of.Corrupt(what); };
  if (!parts.scale || parts.global_scale.has_value() != nv) {
    return corrupt(
        fmt::format("{} weights have weight_packed, weight_scale and {}weight_global_scale",
                    nv ? "NVFP4" : "MXFP4", nv ? "" : "no "));
  }
  if (wanted.cols % group != 0) {
    return corrupt(fmt::format("groups of {} do not divide its width of {}", group, wanted.cols));
  }
  const struct {
    const char* name;
    const std::optional<Located>& part;
    DType dtype, other;
    Shape shape;
  } kParts[] = {
      {"weight_packed", parts.packed, DType::kU8, DType::kU8, {wanted.rows, wanted.cols / 2}},
      {"weight_scale",
       parts.scale,
       nv ? DType::kF8E4M3 : DType::kU8,
       nv ? DType::kF8E4M3 : DType::kF8E8M0,
       {wanted.rows, wanted.cols / group}}};
  for (const auto& part : kParts) {
    const SafetensorsEntry& entry = *part.part->entry;
    if ((entry.dtype != part.dtype && entry.dtype != part.other) || entry.shape != part.shape) {
      return corrupt(fmt::format("{} is {} {}, expected {} {}", part.name, Name(entry.dtype),
                                 entry.shape.ToString(), Name(part.dtype), part.shape.ToString()));
    }
  }
  if (nv && (parts.global_scale->entry->dtype != DType::kF32 ||
             parts.global_scale->entry->shape.num_elements() != 1)) {
    return corrupt("weight_global_scale is not one F32");
  }
  return WeightSpec{.rows = wanted.rows,
                    .cols = wanted.cols,
                    .kind = CodecKind::kCodebook,
                    .bits = 4,
                    .group_size = group,
                    .has_f32_scales = true,
                    .codebook = Codebook::kE2M1,
                    .scale_grid = nv ? ScaleGrid::kE4M3 : ScaleGrid::kPowersOfTwo};
}

// Codes of rows [begin, end).
void UnpackRows(const TensorView& packed, bool whole_codes, int bits, std::int64_t cols,
                std::int64_t begin, std::int64_t end, std::vector<std::uint8_t>& codes) {
  const std::int64_t per_word = 32 / bits;
  const std::int64_t words = packed.shape[1];
  const std::uint32_t mask = (1U << bits) - 1U;
  codes.resize(static_cast<std::size_t>((end - begin) * cols));
  std::uint8_t* out = codes.data();
  for (std::int64_t row = begin; row < end; ++row) {
    const std::byte* source = packed.bytes.data() + row * words * 4;
    if (32 % bits != 0 && !whole_codes) {
      for (std::int64_t col = 0; col < cols; ++col) {
        *out++ = static_cast<std::uint8_t>(CodeAt(source, 1, bits, col));
      }
      continue;
    }
    for (std::int64_t word = 0; word < words; ++word) {
      std::uint32_t value = 0;
      std::memcpy(&value, source + word * 4, sizeof value);
      const std::int64_t count = std::min(per_word, cols - word * per_word);
      if (bits == 4 && count == per_word) {  // every 4 bits to a byte of their own
        std::uint64_t spread = value;
        spread = (spread | spread << 16) & 0x0000ffff0000ffffULL;
        spread = (spread | spread << 8) & 0x00ff00ff00ff00ffULL;
        spread = (spread | spread << 4) & 0x0f0f0f0f0f0f0f0fULL;
        std::memcpy(out, &spread, sizeof spread);
        out += sizeof spread;
        continue;
      }
      for (std::int64_t i = 0; i < count; ++i) {
        *out++ = static_cast<std::uint8_t>(value & mask);
        value >>= bits;
      }
    }
  }
}

// Rows of FP8 codes; a scale of the tensor or of a block of rows is that of each of them.
Result<void> ReadFp8(const Parts& parts, const WeightSpec& spec, std::int64_t begin,
                     std::int64_t end, QuantizedTensor& out) {
  const auto codes =
      parts.plain->view().bytes.subspan(static_cast<std::size_t>(begin * spec.cols),
                                        static_cast<std::size_t>((end - begin) * spec.cols));
  out.codes.resize(codes.size());
  std::memcpy(out.codes.data(), codes.data(), codes.size());
  const TensorView scale = parts.scale->view();
  NIBBLE_TRY(scales, WidenFloats(scale.dtype, scale.bytes));
  const auto count = static_cast<std::int64_t>(scales.size());
  const std::int64_t groups = spec.num_groups();
  const std::int64_t rows = count == 1 ? spec.rows : count == spec.rows * groups ? 1 : kFp8Block;
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      out.scales.push_back(scales[static_cast<std::size_t>(row / rows * groups + group)]);
    }
  }
  return {};
}

// Rows of MXFP4 and NVFP4.
Result<void> ReadFp4(const Parts& parts, const WeightSpec& spec, std::int64_t begin,
                     std::int64_t end, QuantizedTensor& out) {
  const auto rows_of = [&](const Located& part, std::int64_t width) {
    return part.view().bytes.subspan(static_cast<std::size_t>(begin * width),
                                     static_cast<std::size_t>((end - begin) * width));
  };
  for (const std::byte pair : rows_of(*parts.packed, spec.cols / 2)) {
    out.codes.push_back(std::to_integer<std::uint8_t>(pair & std::byte{15}));
    out.codes.push_back(std::to_integer<std::uint8_t>(pair >> 4));
  }
  if (parts.global_scale) {
    std::memcpy(&out.scale_divisor, parts.global_scale->view().bytes.data(), sizeof(float));
    if (!std::isfinite(out.scale_divisor) || out.scale_divisor <= 0.0F) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("{} is {}, not above 0", parts.global_scale->entry->name, out.scale_divisor));
    }
  }
  for (const std::byte byte : rows_of(*parts.scale, spec.num_groups())) {
    const auto code = std::to_integer<std::uint8_t>(byte);
    if (parts.global_scale) {
      out.scales.push_back(ValuesOf(Codebook::kFp8E4M3)[code] / out.scale_divisor);
    } else {
      out.scales.push_back(code == 255 ? std::numeric_limits<float>::quiet_NaN()
                                       : std::ldexp(1.0F, code - 127));
    }
  }
  return {};
}

class TensorWeight final : public StoredWeight {
 public:
  TensorWeight(const WeightSpec& spec, std::string stored_as, Parts parts)
      : StoredWeight(spec, std::move(stored_as), parts.All()), tensors_(std::move(parts)) {}

  Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const override {
    // Rows of a row-major tensor of `width` elements.
    const auto slice = [&](const TensorView& view, std::int64_t width) {
      const std::size_t row_bytes = static_cast<std::size_t>(width) * SizeBytes(view.dtype);
      return view.bytes.subspan(static_cast<std::size_t>(begin) * row_bytes,
                                static_cast<std::size_t>(end - begin) * row_bytes);
    };
    if (spec_.kind == CodecKind::kFloat) {
      NIBBLE_TRY(values, WidenFloats(spec_.float_dtype, slice(tensors_.plain->view(), spec_.cols)));
      out.values = std::move(values);
      return {};
    }
    if (spec_.codebook == Codebook::kFp8E4M3) {
      return ReadFp8(tensors_, spec_, begin, end, out);
    }
    if (spec_.codebook == Codebook::kE2M1) {
      return ReadFp4(tensors_, spec_, begin, end, out);
    }
    const std::int64_t groups = spec_.num_groups();
    if (tensors_.packed) {
      UnpackRows(tensors_.packed->view(), tensors_.whole_codes, spec_.bits, spec_.cols, begin, end,
                 out.codes);
    } else {
      const auto codes = slice(tensors_.plain->view(), spec_.cols);
      out.codes.resize(codes.size());
      std::ranges::transform(codes, out.codes.begin(), [](std::byte code) {
        return static_cast<std::uint8_t>(static_cast<std::uint8_t>(code) ^ 0x80U);
      });
    }
    const TensorView scale = tensors_.scale->view();
    if (spec_.has_one_scale) {
      NIBBLE_TRY(one, WidenFloats(scale.dtype, scale.bytes));
      out.scales.assign(static_cast<std::size_t>(end - begin), one.front());
      return {};
    }
    NIBBLE_TRY(scales, WidenFloats(scale.dtype, slice(scale, groups)));
    out.scales = std::move(scales);
    if (tensors_.zero_point && tensors_.packed) {
      // Packed along the rows.
      const TensorView zero = tensors_.zero_point->view();
      const int bits = spec_.bits;
      const std::int64_t per_word = 32 / bits;
      for (std::int64_t row = begin; row < end; ++row) {
        // Where words hold whole codes, code `row` is code row % per_word of its word.
        const std::int64_t word = tensors_.whole_codes ? row / per_word : 0;
        const std::int64_t index = tensors_.whole_codes ? row % per_word : row;
        for (std::int64_t group = 0; group < groups; ++group) {
          out.zero_points.push_back(static_cast<std::uint8_t>(
              CodeAt(zero.bytes.data() + (word * groups + group) * 4, groups, bits, index)));
        }
      }
    } else if (tensors_.zero_point) {
      for (const std::byte zero : slice(tensors_.zero_point->view(), groups)) {
        out.zero_points.push_back(
            static_cast<std::uint8_t>(static_cast<std::uint8_t>(zero) ^ 0x80U));
      }
    }
    return {};
  }

 private:
  Parts tensors_;
};

}  // namespace

Result<std::unique_ptr<StoredWeight>> FindTensorWeight(const ExpectedWeight& wanted,
                                                       const CompressedTensorsScheme* scheme,
                                                       const TensorMap& tensors,
                                                       const std::string& folder,
                                                       std::set<std::string>& used) {
  Parts parts;
  const auto take = [&](const std::string& name, std::optional<Located>& target) {
    if (const auto found = tensors.find(name); found != tensors.end()) {
      target = found->second;
      used.insert(name);
    }
  };
  take(wanted.name, parts.plain);
  if (wanted.rows > 1) {
    take(wanted.name + "_packed", parts.packed);
    take(wanted.name + "_scale", parts.scale);
    take(wanted.name + "_global_scale", parts.global_scale);
    take(wanted.name + "_zero_point", parts.zero_point);
    take(wanted.name + "_shape", parts.shape);
  }
  if (wanted.is_linear) {
    if (!parts.scale) {
      take(wanted.name + "_scale_inv", parts.scale);  // multiplies all the same
    }
    std::optional<Located> unused;  // static scales of the activations
    const std::string module = wanted.name.substr(0, wanted.name.rfind('.') + 1);
    take(module + "input_scale", unused);
    take(module + "input_global_scale", unused);
  }
  if (!parts.plain && !parts.packed) {
    return Fail(ErrorCode::kNotFound, fmt::format("{}: tensor {} is missing", folder, wanted.name));
  }
  if (parts.plain && parts.packed) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: tensor {} is there twice, plain and packed", folder, wanted.name));
  }
  const bool fp8 = parts.plain && parts.scale && parts.plain->entry->dtype == DType::kF8E4M3;
  const bool fp4 = parts.packed && scheme != nullptr && scheme->is_fp4;
  const Wanted of{.weight = wanted, .scheme = scheme, .folder = folder};
  NIBBLE_TRY(spec, fp8 ? Fp8SpecOf(of, parts) : fp4 ? Fp4SpecOf(of, parts) : SpecOf(of, parts));
  std::string stored_as = fp8            ? std::string("fp8 e4m3")
                          : fp4          ? scheme->format
                          : parts.packed ? fmt::format("pack-quantized int{}", spec.bits)
                          : parts.scale  ? std::string("int-quantized int8")
                                         : std::string(Name(parts.plain->entry->dtype));
  return std::make_unique<TensorWeight>(spec, std::move(stored_as), std::move(parts));
}

}  // namespace nibble
