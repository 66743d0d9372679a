#include "checkpoint/nibble_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/code_words.h"

namespace nibble {
namespace {

constexpr std::string_view kSuffix = ".weight";
constexpr int kVersion = 1;
constexpr const char* kNibbleFormat = "nibble-codebook";
constexpr std::size_t kModules = std::size_t{1} << 16;

// What the config says of one module.
struct Declared {
  Codebook codebook = Codebook::kNone;
  std::int64_t group_size = 0;
};

class NibbleWeight final : public StoredWeight {
 public:
  NibbleWeight(WeightSpec spec, std::vector<Located> parts)
      : StoredWeight(spec, fmt::format("nibble {}", Name(spec.codebook)), std::move(parts)) {}

  Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const override {
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    const TensorView codes = parts_[0].view();
    const std::int64_t rows = end - begin;
    const std::int64_t cols = spec_.cols;
    out.codes.resize(size(rows * cols));
    if (spec_.bits == 8) {
      std::memcpy(out.codes.data(), codes.bytes.data() + begin * cols, out.codes.size());
    } else {
      std::uint8_t* to = out.codes.data();
      for (std::int64_t row = begin; row < end; ++row) {
        const std::byte* from = codes.bytes.data() + row * codes.shape[1] * 4;
        for (std::int64_t col = 0; col < cols; ++col) {
          *to++ = static_cast<std::uint8_t>(CodeAt(from, 1, spec_.bits, col));
        }
      }
    }
    const TensorView scale = parts_[1].view();
    const std::size_t row_bytes = size(spec_.num_groups()) * SizeBytes(scale.dtype);
    NIBBLE_TRY(scales, WidenFloats(scale.dtype, scale.bytes.subspan(size(begin) * row_bytes,
                                                                    size(rows) * row_bytes)));
    out.scales = std::move(scales);
    return {};
  }
};

class NibbleLayout final : public WeightLayout {
 public:
  NibbleLayout(std::map<std::string, Declared, std::less<>> modules, std::string folder)
      : modules_(std::move(modules)), folder_(std::move(folder)) {}

  Result<std::unique_ptr<StoredWeight>> Find(const ExpectedWeight& wanted, const TensorMap& tensors,
                                             std::set<std::string>& used) override {
    if (!wanted.name.ends_with(kSuffix)) {
      return nullptr;
    }
    const auto declared =
        modules_.find(std::string_view(wanted.name).substr(0, wanted.name.size() - kSuffix.size()));
    if (declared == modules_.end()) {
      return nullptr;  // floats, or CheckLayout tells
    }
    const Codebook codebook = declared->second.codebook;
    const auto corrupt = [&](const std::string& what) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("{}: {}: {}", folder_, wanted.name, what));
    };
    const auto find = [&](const std::string& name) -> const Located* {
      const auto found = tensors.find(name);
      if (found == tensors.end()) {
        return nullptr;
      }
      used.insert(name);
      return &found->second;
    };
    const int bits = BitsOf(codebook);
    const bool bytes = bits == 8;
    const Located* codes = find(bytes ? wanted.name : wanted.name + "_packed");
    const Located* scales = find(wanted.name + "_scale");
    if (codes == nullptr || scales == nullptr) {
      return corrupt(fmt::format("{} is missing; quantization_config says {}",
                                 scales == nullptr ? "weight_scale"
                                 : bytes           ? "weight"
                                                   : "weight_packed",
                                 Name(codebook)));
    }
    const std::int64_t group_size = declared->second.group_size == 0
                                        ? wanted.cols
                                        : std::min(declared->second.group_size, wanted.cols);
    if (wanted.cols % group_size != 0) {
      return corrupt(
          fmt::format("groups of {} do not divide its width of {}", group_size, wanted.cols));
    }
    const DType dtype = scales->entry->dtype;
    const Shape code_shape{wanted.rows, bytes ? wanted.cols : CodeWords(wanted.cols, bits)};
    const Shape scale_shape{wanted.rows, wanted.cols / group_size};
    const auto differs = [&](const char* which, const SafetensorsEntry& entry,
                             std::string_view type, const Shape& shape) {
      return corrupt(fmt::format("{} is {} {}; {} in groups of {} takes {} {}", which,
                                 Name(entry.dtype), entry.shape.ToString(), Name(codebook),
                                 group_size, type, shape.ToString()));
    };
    const DType code_type = bytes ? DType::kF8E5M2 : DType::kI32;
    if (codes->entry->dtype != code_type || codes->entry->shape != code_shape) {
      return differs(bytes ? "weight" : "weight_packed", *codes->entry, Name(code_type),
                     code_shape);
    }
    if ((dtype != DType::kF16 && dtype != DType::kBF16 && dtype != DType::kF32) ||
        scales->entry->shape != scale_shape) {
      return differs("weight_scale", *scales->entry, "floats", scale_shape);
    }
    return std::make_unique<NibbleWeight>(WeightSpec{.rows = wanted.rows,
                                                     .cols = wanted.cols,
                                                     .kind = CodecKind::kCodebook,
                                                     .bits = bits,
                                                     .group_size = group_size,
                                                     .has_f32_scales = dtype == DType::kF32,
                                                     .codebook = codebook},
                                          std::vector<Located>{*codes, *scales});
  }

 private:
  std::map<std::string, Declared, std::less<>> modules_;
  std::string folder_;
};

class NibbleEncoder final : public WeightEncoder {
 public:
  NibbleEncoder(WeightToWrite weight, DType scale_dtype)
      : weight_(std::move(weight)),
        scale_dtype_(weight_.spec.has_f32_scales ? DType::kF32 : scale_dtype) {}

  std::vector<SafetensorsEntry> Parts() const override {
    const WeightSpec& spec = weight_.spec;
    SafetensorsEntry codes{
        .name = weight_.name, .dtype = DType::kF8E5M2, .shape = Shape{spec.rows, spec.cols}};
    if (spec.bits < 8) {
      codes = {.name = weight_.name + "_packed",
               .dtype = DType::kI32,
               .shape = Shape{spec.rows, CodeWords(spec.cols, spec.bits)}};
    }
    return {codes,
            {.name = weight_.name + "_scale",
             .dtype = scale_dtype_,
             .shape = Shape{spec.rows, spec.num_groups()}}};
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    const WeightSpec& spec = weight_.spec;
    AppendFloats(rows.scales, scale_dtype_, scales_);
    if (spec.bits == 8) {
      return std::string(reinterpret_cast<const char*>(rows.codes.data()), rows.codes.size());
    }
    return RowStreams(rows.codes, spec.cols, spec.bits);
  }
  std::vector<std::string> Finish() override {
    std::vector<std::string> out = {"", std::move(scales_)};
    scales_.clear();
    return out;
  }
  DType ScaleDType() const override { return scale_dtype_; }

 private:
  WeightToWrite weight_;
  DType scale_dtype_;
  std::string scales_;
};

}  // namespace

bool NibbleLayoutHolds(Codebook codebook) {
  return codebook == Codebook::kLog4 || codebook == Codebook::kLog3 ||
         codebook == Codebook::kFp8E5M2;
}

json::Object NibbleConfigObject(std::span<const NibbleGroup> groups) {
  json::Object list;
  for (const NibbleGroup& group : groups) {
    json::Object weights;
    weights.Set("num_bits", BitsOf(group.codebook));
    weights.Set("type", Name(group.codebook));
    weights.Set("strategy", group.group_size == 0 ? "channel" : "group");
    weights.Set("group_size",
                group.group_size == 0 ? json::Value() : json::Value(group.group_size));
    json::Object entry;
    entry.Set("targets", json::Array(group.modules.begin(), group.modules.end()));
    entry.Set("weights", std::move(weights));
    list.Set(fmt::format("group_{}", list.size()), std::move(entry));
  }
  json::Object out;
  out.Set("quant_method", "compressed-tensors");
  out.Set("format", kNibbleFormat);
  out.Set("nibble_version", kVersion);
  out.Set("quantization_status", "compressed");
  out.Set("config_groups", std::move(list));
  return out;
}

bool IsNibbleConfig(const json::Value& config) {
  const json::Value* format = config.Find("format");
  return format != nullptr && *format == json::Value(kNibbleFormat);
}

Result<std::unique_ptr<WeightLayout>> MakeNibbleLayout(const json::Value& config,
                                                       const std::string& source) {
  const auto corrupt = [&](const std::string& what) {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: quantization_config: {}", source, what));
  };
  const json::Value* version = config.Find("nibble_version");
  if (version == nullptr || !(*version == json::Value(kVersion))) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: quantization_config: version {} of nibble's layout is not read "
                            "({} is)",
                            source, version == nullptr ? "(missing)" : Quote(json::Dump(*version)),
                            kVersion));
  }
  const json::Value* groups = config.Find("config_groups");
  if (groups == nullptr || groups->AsObject() == nullptr) {
    return corrupt("config_groups is missing");
  }
  std::map<std::string, Declared, std::less<>> modules;
  for (const auto& [group_name, group] : *groups->AsObject()) {
    const json::Value* weights = group.Find("weights");
    if (weights == nullptr || !weights->IsObject()) {
      return corrupt(fmt::format("group \"{}\" says nothing about weights", Quote(group_name)));
    }
    const json::Value* name = weights->Find("type");
    const auto codebook = name == nullptr || name->AsString() == nullptr
                              ? std::nullopt
                              : ParseCodebook(*name->AsString());
    if (!codebook || !NibbleLayoutHolds(*codebook)) {
      return corrupt(fmt::format("type is {}; log4, log3 and fp8-e5m2 are stored so",
                                 name == nullptr ? "(missing)" : Quote(json::Dump(*name))));
    }
    const json::Value* size = weights->Find("group_size");
    const bool rows = size == nullptr || size->IsNull();
    const auto group_size = rows ? std::optional<std::int64_t>(0) : size->AsInt();
    if (!group_size || (!rows && *group_size < 1)) {
      return corrupt("group_size is no number of columns, nor null for whole rows");
    }
    const json::Value* list = group.Find("targets");
    if (list == nullptr || list->AsArray() == nullptr || list->AsArray()->size() > kModules) {
      return corrupt(fmt::format("targets is not a list of at most {} names", kModules));
    }
    for (const json::Value& module : *list->AsArray()) {
      if (module.AsString() == nullptr ||
          !modules.emplace(*module.AsString(), Declared{*codebook, *group_size}).second) {
        return corrupt(fmt::format("targets holds {}, which is no name or is there twice",
                                   Quote(json::Dump(module))));
      }
    }
  }
  return std::make_unique<NibbleLayout>(std::move(modules), source.substr(0, source.rfind('/')));
}

Result<std::unique_ptr<WeightEncoder>> MakeNibbleEncoder(const WeightToWrite& weight,
                                                         const EncoderOptions& options) {
  const WeightSpec& spec = weight.spec;
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  if (!NibbleLayoutHolds(spec.codebook) || spec.has_one_scale) {
    return wrong(
        fmt::format("{} has no place in nibble's own layout, which stores log4, log3 and "
                    "fp8-e5m2",
                    spec.ToString()));
  }
  if (spec.group_size < 1 || spec.cols % spec.group_size != 0) {
    return wrong(
        fmt::format("groups of {} do not divide its width of {}", spec.group_size, spec.cols));
  }
  return std::make_unique<NibbleEncoder>(weight, options.scale_dtype);
}

}  // namespace nibble
