#include "checkpoint/awq.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/folder_format.h"
#include "checkpoint/stored_weight.h"

namespace nibble {
namespace {

constexpr int kBits = 4;
constexpr std::int64_t kPerWord = 8;

std::string Lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  return text;
}

}  // namespace

Result<AwqConfig> AwqConfig::Parse(const json::Value& config, const std::string& source) {
  const auto any = [&](std::string_view first, std::string_view second) -> const json::Value* {
    const json::Value* value = config.Find(first);
    value = value == nullptr || value->IsNull() ? config.Find(second) : value;
    return value == nullptr || value->IsNull() ? nullptr : value;
  };
  const auto fail = [&](ErrorCode code, const std::string& what) {
    return Fail(code, fmt::format("{}: quantization_config: {}", source, what));
  };
  const json::Value* bits = any("bits", "w_bit");
  const json::Value* group = any("group_size", "q_group_size");
  if (bits == nullptr || group == nullptr) {
    return fail(ErrorCode::kCorruptFile,
                fmt::format("{} is missing; an AWQ folder says bits, group_size, zero_point and "
                            "version: add what it was quantized with",
                            bits == nullptr ? "bits" : "group_size"));
  }
  if (!(*bits == json::Value(kBits))) {
    return fail(ErrorCode::kUnsupported, fmt::format("AWQ weights of {} bits are not read (4 are)",
                                                     Quote(json::Dump(*bits))));
  }
  const std::int64_t size = group->AsInt().value_or(0);
  if (size != -1 && (size < 1 || size > (std::int64_t{1} << 31))) {
    return fail(ErrorCode::kCorruptFile,
                fmt::format("group_size is {}; it is a number of columns, or -1 for whole rows",
                            Quote(json::Dump(*group))));
  }
  if (const json::Value* zero = config.Find("zero_point");
      zero != nullptr && !zero->AsBool().value_or(true)) {
    return fail(ErrorCode::kUnsupported,
                "AWQ without zero points (zero_point false) is not read; quantize with zero_point "
                "true");
  }
  if (const json::Value* version = any("version", "format")) {
    const std::string name = version->AsString() == nullptr ? "" : Lower(*version->AsString());
    if (name != "gemm" && name != "awq" && name != "exllama" && name != "marlin") {
      return fail(
          ErrorCode::kUnsupported,
          fmt::format("AWQ of version {} is not read (gemm is); {}", Quote(json::Dump(*version)),
                      name.starts_with("gptq")
                          ? "if the folder is GPTQ's, set quant_method to \"gptq\""
                          : "quantize with version \"gemm\""));
    }
  }
  AwqConfig out;
  out.group_size = size == -1 ? 0 : size;
  if (const json::Value* skip = any("modules_to_not_convert", "ignore")) {
    const json::Array* names = skip->AsArray();
    if (names == nullptr || !std::ranges::all_of(*names, [](const json::Value& name) {
          return name.AsString() != nullptr;
        })) {
      return fail(ErrorCode::kCorruptFile, "modules_to_not_convert is not a list of names");
    }
    for (const json::Value& name : *names) {
      out.skip.push_back(*name.AsString());
    }
  }
  return out;
}

bool AwqConfig::Skips(std::string_view module) const {
  return std::ranges::any_of(
      skip, [&](const std::string& part) { return module.find(part) != std::string_view::npos; });
}

json::Object AwqConfigObject(std::int64_t group_size, const std::vector<std::string>& skip) {
  json::Array names;
  for (const std::string& name : skip) {
    names.push_back(name);
  }
  json::Object out;
  out.Set("quant_method", "awq");
  out.Set("bits", kBits);
  out.Set("group_size", group_size == 0 ? std::int64_t{-1} : group_size);
  out.Set("zero_point", true);
  out.Set("version", "gemm");
  out.Set("modules_to_not_convert", names.empty() ? json::Value() : json::Value(std::move(names)));
  return out;
}

namespace {

class AwqWeight final : public StoredWeight {
 public:
  AwqWeight(WeightSpec spec, std::vector<Located> parts)
      : StoredWeight(spec, "awq int4", std::move(parts)) {}

  Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const override {
    const TensorView codes = parts_[0].view();
    const TensorView zeros = parts_[1].view();
    const TensorView scales = parts_[2].view();
    const std::int64_t rows = end - begin;
    const std::int64_t groups = spec_.num_groups();
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    out.codes.resize(size(rows * spec_.cols));
    out.zero_points.resize(size(rows * groups));
    out.scales.resize(size(rows * groups));
    Transpose(codes, begin, end, spec_.cols, out.codes);
    Transpose(zeros, begin, end, groups, out.zero_points);
    const std::size_t width = SizeBytes(scales.dtype);
    for (std::int64_t group = 0; group < groups; ++group) {
      NIBBLE_TRY(values, WidenFloats(scales.dtype,
                                     scales.bytes.subspan(size(group * spec_.rows + begin) * width,
                                                          size(rows) * width)));
      for (std::int64_t row = 0; row < rows; ++row) {
        out.scales[size(row * groups + group)] = values[size(row)];
      }
    }
    return {};
  }

 private:
  // words: [count, rows / 8] -> outputs [begin, end) of [rows, count].
  static void Transpose(const TensorView& words, std::int64_t begin, std::int64_t end,
                        std::int64_t count, std::vector<std::uint8_t>& out) {
    const std::int64_t stride = words.shape[1];
    for (std::int64_t i = 0; i < count; ++i) {
      const std::byte* from = words.bytes.data() + i * stride * 4;
      for (std::int64_t row = begin; row < end; ++row) {
        std::uint32_t word = 0;
        std::memcpy(&word, from + row / kPerWord * 4, sizeof word);
        const unsigned shift = kAwqSlot[static_cast<std::size_t>(row % kPerWord)] * kBits;
        out[static_cast<std::size_t>((row - begin) * count + i)] =
            static_cast<std::uint8_t>(word >> shift & 15U);
      }
    }
  }
};

class AwqLayout final : public WeightLayout {
 public:
  AwqLayout(AwqConfig config, std::string folder)
      : config_(std::move(config)), folder_(std::move(folder)) {}

  Result<std::unique_ptr<StoredWeight>> Find(const ExpectedWeight& wanted, const TensorMap& tensors,
                                             std::set<std::string>& used) override {
    constexpr std::string_view kSuffix = ".weight";
    if (wanted.rows == 1 || !wanted.name.ends_with(kSuffix)) {
      return nullptr;
    }
    const std::string module = wanted.name.substr(0, wanted.name.size() - kSuffix.size());
    const auto find = [&](const char* suffix) -> const Located* {
      const auto found = tensors.find(module + suffix);
      if (found == tensors.end()) {
        return nullptr;
      }
      used.insert(found->first);
      return &found->second;
    };
    const auto corrupt = [&](const std::string& what) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("{}: {}: {}", folder_, module, what));
    };
    const Located* qweight = find(".qweight");
    const Located* qzeros = find(".qzeros");
    const Located* scales = find(".scales");
    if (qweight == nullptr && qzeros == nullptr && scales == nullptr) {
      return nullptr;  // kept as floats
    }
    if (qweight == nullptr || qzeros == nullptr || scales == nullptr) {
      return corrupt(fmt::format("{} is missing; qweight, qzeros and scales belong together",
                                 qweight == nullptr  ? "qweight"
                                 : qzeros == nullptr ? "qzeros"
                                                     : "scales"));
    }
    if (config_.Skips(module)) {
      return corrupt("is quantized, but modules_to_not_convert names it");
    }
    if (tensors.contains(module + ".g_idx")) {
      return corrupt("has a g_idx, as GPTQ does and AWQ does not; set quant_method to \"gptq\"");
    }
    const std::int64_t group_size =
        config_.group_size == 0 ? wanted.cols : std::min(config_.group_size, wanted.cols);
    if (wanted.cols % group_size != 0 || wanted.rows % kPerWord != 0) {
      return corrupt(
          fmt::format("[{}, {}] does not divide into groups of {} and words of 8 outputs",
                      wanted.rows, wanted.cols, group_size));
    }
    const std::int64_t groups = wanted.cols / group_size;
    const DType dtype = scales->entry->dtype;
    const struct {
      const char* name;
      const Located* part;
      Shape shape;
      bool floats;
    } kParts[] = {{"qweight", qweight, Shape{wanted.cols, wanted.rows / kPerWord}, false},
                  {"qzeros", qzeros, Shape{groups, wanted.rows / kPerWord}, false},
                  {"scales", scales, Shape{groups, wanted.rows}, true}};
    for (const auto& part : kParts) {
      const SafetensorsEntry& entry = *part.part->entry;
      const bool right_type =
          part.floats ? dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF32
                      : entry.dtype == DType::kI32;
      if (!right_type || entry.shape != part.shape) {
        return corrupt(fmt::format("{} is {} {}; 4 bits in groups of {} take {} {}", part.name,
                                   Name(entry.dtype), entry.shape.ToString(), group_size,
                                   part.floats ? "floats" : "I32", part.shape.ToString()));
      }
    }
    return std::make_unique<AwqWeight>(WeightSpec{.rows = wanted.rows,
                                                  .cols = wanted.cols,
                                                  .kind = CodecKind::kUniform,
                                                  .bits = kBits,
                                                  .group_size = group_size,
                                                  .has_zero_points = true,
                                                  .has_f32_scales = dtype == DType::kF32},
                                       std::vector<Located>{*qweight, *qzeros, *scales});
  }

 private:
  AwqConfig config_;
  std::string folder_;
};

class AwqEncoder final : public WeightEncoder {
 public:
  AwqEncoder(WeightToWrite weight, DType scale_dtype)
      : module_(weight.name.substr(0, weight.name.rfind('.'))),
        spec_(weight.spec),
        scale_dtype_(scale_dtype) {}

  std::vector<SafetensorsEntry> Parts() const override {
    const std::int64_t groups = spec_.num_groups();
    return {
        {.name = module_ + ".qweight",
         .dtype = DType::kI32,
         .shape = Shape{spec_.cols, spec_.rows / kPerWord}},
        {.name = module_ + ".qzeros",
         .dtype = DType::kI32,
         .shape = Shape{groups, spec_.rows / kPerWord}},
        {.name = module_ + ".scales", .dtype = scale_dtype_, .shape = Shape{groups, spec_.rows}}};
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    if (next_row_ == 0) {
      Clear();
    }
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    const std::int64_t groups = spec_.num_groups();
    const std::int64_t stride = spec_.rows / kPerWord;
    for (std::int64_t row = 0; row < rows.spec.rows; ++row, ++next_row_) {
      const unsigned shift = kAwqSlot[size(next_row_ % kPerWord)] * kBits;
      const std::int64_t word = next_row_ / kPerWord;
      for (std::int64_t col = 0; col < spec_.cols; ++col) {
        words_[size(col * stride + word)] |= std::uint32_t{rows.codes[size(row * spec_.cols + col)]}
                                             << shift;
      }
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::size_t at = size(row * groups + group);
        const std::uint32_t zero = spec_.has_zero_points ? rows.zero_points[at] : 8;
        zero_words_[size(group * stride + word)] |= zero << shift;
        scales_[size(group * spec_.rows + next_row_)] = rows.scales[at];
      }
    }
    return std::string();
  }
  std::vector<std::string> Finish() override {
    const auto bytes = [](const std::vector<std::uint32_t>& words) {
      return std::string(reinterpret_cast<const char*>(words.data()), words.size() * 4);
    };
    std::vector<std::string> out = {bytes(words_), bytes(zero_words_), ""};
    AppendFloats(scales_, scale_dtype_, out[2]);
    next_row_ = 0;
    return out;
  }
  DType ScaleDType() const override { return scale_dtype_; }

 private:
  void Clear() {
    const auto stride = static_cast<std::size_t>(spec_.rows / kPerWord);
    const auto groups = static_cast<std::size_t>(spec_.num_groups());
    words_.assign(static_cast<std::size_t>(spec_.cols) * stride, 0);
    zero_words_.assign(groups * stride, 0);
    scales_.assign(groups * static_cast<std::size_t>(spec_.rows), 0.0F);
  }

  std::string module_;
  WeightSpec spec_;
  DType scale_dtype_;
  std::vector<std::uint32_t> words_, zero_words_;
  std::vector<float> scales_;
  std::int64_t next_row_ = 0;
};

}  // namespace

Result<std::unique_ptr<WeightLayout>> MakeAwqLayout(const json::Value& config,
                                                    const std::string& source) {
  NIBBLE_TRY(parsed, AwqConfig::Parse(config, source));
  return std::make_unique<AwqLayout>(std::move(parsed), source.substr(0, source.rfind('/')));
}

Result<std::unique_ptr<WeightEncoder>> MakeAwqEncoder(const WeightToWrite& weight,
                                                      const EncoderOptions& options) {
  const WeightSpec& spec = weight.spec;
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  if (spec.kind != CodecKind::kUniform || spec.bits != kBits) {
    return wrong(fmt::format("{} has no place in AWQ, which stores uniform integers of 4 bits",
                             spec.ToString()));
  }
  if (spec.group_size < 1 || spec.cols % spec.group_size != 0) {
    return wrong(
        fmt::format("groups of {} do not divide its width of {}", spec.group_size, spec.cols));
  }
  if (spec.rows % kPerWord != 0) {
    return wrong(fmt::format("{} outputs are no multiple of 8, as AWQ needs", spec.rows));
  }
  return std::make_unique<AwqEncoder>(weight, options.scale_dtype);
}

}  // namespace nibble
