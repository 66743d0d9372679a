#include "checkpoint/gptq.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/code_words.h"
#include "checkpoint/folder_format.h"
#include "checkpoint/stored_weight.h"

namespace nibble {
namespace {

constexpr std::size_t kRules = 4096;

std::string Spelling(const json::Value* value) {
  return value == nullptr ? std::string("missing") : Quote(json::Dump(*value));
}

// The member under the first of its names that is there.
const json::Value* FindAny(const json::Value& config,
                           std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    const json::Value* value = config.Find(name);
    if (value != nullptr && !value->IsNull()) {
      return value;
    }
  }
  return nullptr;
}

// Members of a scheme that are there replace those of `scheme`.
Result<void> ReadScheme(const json::Value& config, const std::string& where, GptqScheme& scheme) {
  if (const json::Value* bits = FindAny(config, {"bits", "w_bit", "wbits"})) {
    const std::int64_t number = bits->AsInt().value_or(0);
    if (number < 1 || number > 8) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: bits is {}; GPTQ has 2, 3, 4 or 8", where, Spelling(bits)));
    }
    if (number != 2 && number != 3 && number != 4 && number != 8) {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{}: GPTQ weights of {} bits are not read (2, 3, 4 and 8 are)", where,
                              number));
    }
    scheme.bits = static_cast<int>(number);
  }
  if (const json::Value* group = FindAny(config, {"group_size", "q_group_size"})) {
    const std::int64_t number = group->AsInt().value_or(0);
    if (number != -1 && (number < 1 || number > (std::int64_t{1} << 31))) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: group_size is {}; it is a number of columns, or -1 for whole "
                              "rows",
                              where, Spelling(group)));
    }
    scheme.group_size = number == -1 ? 0 : number;
  }
  const json::Value* symmetric = config.Find("sym");
  if (symmetric != nullptr && symmetric->AsBool()) {
    scheme.symmetric = *symmetric->AsBool();
  } else if (const json::Value* zero = config.Find("zero_point");
             zero != nullptr && zero->AsBool()) {
    scheme.symmetric = !*zero->AsBool();
  }
  if (const json::Value* order = config.Find("desc_act"); order != nullptr && order->AsBool()) {
    scheme.desc_act = *order->AsBool();
  }
  return {};
}

}  // namespace

Result<GptqConfig> GptqConfig::Parse(const json::Value& config, const std::string& source) {
  const std::string where = source + ": quantization_config";
  GptqConfig out;
  for (const auto& names :
       {std::pair{"bits", FindAny(config, {"bits", "w_bit", "wbits"})},
        std::pair{"group_size", FindAny(config, {"group_size", "q_group_size"})}}) {
    if (names.second == nullptr) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("{}: {} is missing; a GPTQ folder says bits, group_size, desc_act and "
                      "sym: add what it was quantized with",
                      where, names.first));
    }
  }
  NIBBLE_TRY_VOID(ReadScheme(config, where, out.scheme_));
  if (const json::Value* format = FindAny(config, {"checkpoint_format", "format", "version"})) {
    if (*format == json::Value("gptq")) {
      out.zeros = GptqZeros::kMinusOne;
    } else if (*format == json::Value("gptq_v2")) {
      out.zeros = GptqZeros::kAsTheyAre;
    } else {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{}: checkpoint_format {} is not read (gptq and gptq_v2 are){}",
                              where, Spelling(format),
                              *format == json::Value("gemm") ? "; gemm is AWQ: set quant_method to "
                                                               "\"awq\""
                                                             : ""));
    }
  }
  if (const json::Value* words = FindAny(config, {"pack_dtype"});
      words != nullptr && !(*words == json::Value("int32"))) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: pack_dtype {} is not read (int32 is)", where, Spelling(words)));
  }
  const json::Value* meta = config.Find("meta");
  if (const json::Value* quantizer = meta == nullptr ? nullptr : meta->Find("quantizer")) {
    out.adds_to_words = json::Dump(*quantizer).find("gptqmodel") != std::string::npos;
  }
  const json::Value* dynamic = FindAny(config, {"dynamic"});
  if (dynamic == nullptr) {
    return out;
  }
  if (dynamic->AsObject() == nullptr || dynamic->AsObject()->size() > kRules) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: dynamic is not an object of at most {} rules", where, kRules));
  }
  for (const auto& [key, value] : *dynamic->AsObject()) {
    std::string_view expression = key;
    const bool skip = expression.starts_with("-:");
    if (skip || expression.starts_with("+:")) {
      expression.remove_prefix(2);
    }
    auto rule = ModuleRule::Compile(expression);
    if (!rule) {
      return Fail(rule.error(), where + ": dynamic: ");
    }
    GptqScheme scheme = out.scheme_;
    NIBBLE_TRY_VOID(
        ReadScheme(value, fmt::format("{}: dynamic \"{}\"", where, Quote(key)), scheme));
    out.overrides_.push_back({.rule = std::move(*rule), .skip = skip, .scheme = scheme});
  }
  return out;
}

std::optional<GptqScheme> GptqConfig::Find(std::string_view module) const {
  for (const Override& one : overrides_) {
    if (one.rule.Matches(module)) {
      return one.skip ? std::nullopt : std::optional(one.scheme);
    }
  }
  return scheme_;
}

json::Object GptqConfigObject(const GptqScheme& scheme, GptqZeros zeros, bool lm_head,
                              std::string_view version) {
  const char* format = zeros == GptqZeros::kMinusOne ? "gptq" : "gptq_v2";
  json::Object out;
  out.Set("quant_method", "gptq");
  out.Set("bits", scheme.bits);
  out.Set("group_size", scheme.group_size == 0 ? std::int64_t{-1} : scheme.group_size);
  out.Set("desc_act", false);
  out.Set("sym", scheme.symmetric.value_or(true));
  out.Set("lm_head", lm_head);
  out.Set("checkpoint_format", format);
  out.Set("format", format);
  out.Set("pack_dtype", "int32");
  json::Object meta;
  meta.Set("quantizer", json::Array{fmt::format("nibble:{}", version)});
  out.Set("meta", std::move(meta));
  return out;
}

namespace {

// How qzeros tell zero points.
struct ZeroRule {
  GptqZeros zeros = GptqZeros::kMinusOne;
  bool whole_words = false;  // the one was taken from words of 32 bits, and borrowed across codes
};

// Zero point `index` of a group whose words start at `words`.
std::uint8_t ZeroAt(const std::byte* words, int bits, std::int64_t index, const ZeroRule& rule) {
  const std::uint32_t mask = (1U << static_cast<unsigned>(bits)) - 1U;
  if (rule.zeros == GptqZeros::kAsTheyAre) {
    return static_cast<std::uint8_t>(CodeAt(words, 1, bits, index));
  }
  if (!rule.whole_words) {
    return static_cast<std::uint8_t>((CodeAt(words, 1, bits, index) + 1U) & mask);
  }
  const std::uint32_t ones = 0xffffffffU / mask;  // 1 in every code
  std::uint32_t word = 0;
  std::memcpy(&word, words + index * bits / 32 * 4, sizeof word);
  return static_cast<std::uint8_t>((word + ones) >> static_cast<unsigned>(index * bits % 32) &
                                   mask);
}

class GptqWeight final : public StoredWeight {
 public:
  // Facts about a weight that its tensors and the config settle together.
  struct Facts {
    ZeroRule rule;
    bool symmetric = true;
    std::vector<std::int32_t> groups;  // [in], if columns are not in the order of their groups
  };
  GptqWeight(WeightSpec spec, std::string stored_as, std::vector<Located> parts, int bits,
             std::int64_t num_groups, Facts facts)
      : StoredWeight(spec, std::move(stored_as), std::move(parts)),
        bits_(bits),
        num_groups_(num_groups),
        facts_(std::move(facts)) {}

  Result<void> Read(std::int64_t begin, std::int64_t end, QuantizedTensor& out) const override {
    const TensorView codes = parts_[0].view();
    const std::int64_t all_rows = codes.shape[1];
    const std::int64_t rows = end - begin;
    const std::int64_t cols = spec_.cols;
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    out.codes.resize(size(rows * cols));
    if (bits_ == 3) {
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t col = 0; col < cols; ++col) {
          out.codes[size(row * cols + col)] = static_cast<std::uint8_t>(
              CodeAt(codes.bytes.data() + (begin + row) * 4, all_rows, bits_, col));
        }
      }
    } else {
      const std::int64_t per_word = 32 / bits_;
      const std::uint32_t mask = (1U << static_cast<unsigned>(bits_)) - 1U;
      for (std::int64_t word_row = 0; word_row < codes.shape[0]; ++word_row) {
        const std::byte* from = codes.bytes.data() + (word_row * all_rows + begin) * 4;
        for (std::int64_t row = 0; row < rows; ++row) {
          std::uint32_t word = 0;
          std::memcpy(&word, from + row * 4, sizeof word);
          std::uint8_t* to = out.codes.data() + row * cols + word_row * per_word;
          for (std::int64_t i = 0; i < per_word; ++i) {
            to[i] = static_cast<std::uint8_t>(word & mask);
            word >>= bits_;
          }
        }
      }
    }
    const TensorView zeros = parts_[1].view();
    const TensorView scales = parts_[2].view();
    out.scales.resize(size(rows * num_groups_));
    out.zero_points.resize(facts_.symmetric ? 0 : size(rows * num_groups_));
    const std::size_t width = SizeBytes(scales.dtype);
    for (std::int64_t group = 0; group < num_groups_; ++group) {
      NIBBLE_TRY(values, WidenFloats(scales.dtype,
                                     scales.bytes.subspan(size(group * all_rows + begin) * width,
                                                          size(rows) * width)));
      const std::byte* words = zeros.bytes.data() + group * zeros.shape[1] * 4;
      for (std::int64_t row = 0; row < rows; ++row) {
        out.scales[size(row * num_groups_ + group)] = values[size(row)];
        if (!facts_.symmetric) {
          out.zero_points[size(row * num_groups_ + group)] =
              ZeroAt(words, bits_, begin + row, facts_.rule);
        }
      }
    }
    if (!facts_.groups.empty()) {
      Decode(rows, out);
    }
    return {};
  }

 private:
  // Columns of mixed groups: no grid of ours holds them, values do, and exactly.
  void Decode(std::int64_t rows, QuantizedTensor& out) const {
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    out.values.resize(out.codes.size());
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < spec_.cols; ++col) {
        const std::size_t at = size(row * spec_.cols + col);
        const std::size_t group = size(row * num_groups_ + facts_.groups[size(col)]);
        const int zero = facts_.symmetric ? 1 << (bits_ - 1) : out.zero_points[group];
        out.values[at] = static_cast<float>(out.codes[at] - zero) * out.scales[group];
      }
    }
    out.codes.clear();
    out.scales.clear();
    out.zero_points.clear();
  }

  int bits_;
  std::int64_t num_groups_;
  Facts facts_;
};

class GptqLayout final : public WeightLayout {
 public:
  GptqLayout(GptqConfig config, std::string folder)
      : config_(std::move(config)), folder_(std::move(folder)) {}

  Result<std::unique_ptr<StoredWeight>> Find(const ExpectedWeight& wanted, const TensorMap& tensors,
                                             std::set<std::string>& used) override;
  std::vector<std::string> Warnings() const override {
    std::vector<std::string> out;
    if (num_ordered_ > 0) {
      out.push_back(
          fmt::format("{}: {} weights have columns in activation order (desc_act), which nibble "
                      "serves as exact "
                      "F32 values of 4 bytes each; a folder with desc_act false takes an eighth",
                      folder_, num_ordered_));
    }
    if (num_masked_ > 0) {
      out.push_back(fmt::format(
          "{}: asymmetric GPTQ of version 1 loses zero points of 0; nibble adds 1 to each of them, "
          "other readers may not agree: gptq_v2 has no such doubt",
          folder_));
    }
    return out;
  }

 private:
  Result<GptqWeight::Facts> Settle(const ExpectedWeight& wanted, const GptqScheme& scheme,
                                   const Located& qzeros, const Located* g_idx,
                                   std::int64_t num_groups) const;
  tl::unexpected<Error> Corrupt(const std::string& name, const std::string& what) const {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: {}: {}", folder_, name, what));
  }

  GptqConfig config_;
  std::string folder_;
  std::int64_t num_ordered_ = 0, num_masked_ = 0;
};

Result<std::unique_ptr<StoredWeight>> GptqLayout::Find(const ExpectedWeight& wanted,
                                                       const TensorMap& tensors,
                                                       std::set<std::string>& used) {
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
  const Located* qweight = find(".qweight");
  const Located* qzeros = find(".qzeros");
  const Located* scales = find(".scales");
  const Located* g_idx = find(".g_idx");
  if (qweight == nullptr && qzeros == nullptr && scales == nullptr && g_idx == nullptr) {
    return nullptr;  // kept as floats
  }
  if (qweight == nullptr || qzeros == nullptr || scales == nullptr) {
    return Corrupt(module, fmt::format("{} is missing; qweight, qzeros and scales belong together",
                                       qweight == nullptr  ? "qweight"
                                       : qzeros == nullptr ? "qzeros"
                                                           : "scales"));
  }
  const std::optional<GptqScheme> scheme = config_.Find(module);
  if (!scheme) {
    return Corrupt(module, "is quantized, but `dynamic` of quantization_config leaves it out");
  }
  const auto is = [](const Located& part, const char* what) {
    return fmt::format("{} is {} {}", what, Name(part.entry->dtype), part.entry->shape.ToString());
  };
  const auto words = [&](const Located& part) {
    return part.entry->dtype == DType::kI32 && part.entry->shape.rank() == 2;
  };
  if (words(*qweight) && g_idx == nullptr && wanted.rows % 8 == 0 &&
      qweight->entry->shape == Shape{wanted.cols, wanted.rows / 8}) {
    return Corrupt(module, fmt::format("{}, which is how AWQ keeps it; set quant_method to \"awq\"",
                                       is(*qweight, "qweight")));
  }
  const int bits = scheme->bits;
  const Shape expected{wanted.cols * bits / 32, wanted.rows};
  if (!words(*qweight) || qweight->entry->shape != expected || wanted.cols * bits % 32 != 0) {
    return Corrupt(module,
                   fmt::format("{}; {} bits of [{}, {}] take I32 {}", is(*qweight, "qweight"), bits,
                               wanted.rows, wanted.cols, expected.ToString()));
  }
  const std::int64_t group_size =
      scheme->group_size == 0 ? wanted.cols : std::min(scheme->group_size, wanted.cols);
  const std::int64_t groups = (wanted.cols + group_size - 1) / group_size;
  const DType dtype = scales->entry->dtype;
  if ((dtype != DType::kF16 && dtype != DType::kBF16 && dtype != DType::kF32) ||
      scales->entry->shape != Shape{groups, wanted.rows}) {
    return Corrupt(module, fmt::format("{}; group_size {} of {} columns takes floats [{}, {}]",
                                       is(*scales, "scales"), scheme->group_size, wanted.cols,
                                       groups, wanted.rows));
  }
  const Shape zero_shape{groups, wanted.rows * bits / 32};
  if (!words(*qzeros) || qzeros->entry->shape != zero_shape || wanted.rows * bits % 32 != 0) {
    return Corrupt(
        module, fmt::format("{}, expected I32 {}", is(*qzeros, "qzeros"), zero_shape.ToString()));
  }
  if (g_idx != nullptr &&
      (g_idx->entry->dtype != DType::kI32 || g_idx->entry->shape != Shape{wanted.cols})) {
    return Corrupt(module, fmt::format("{}, expected I32 [{}]", is(*g_idx, "g_idx"), wanted.cols));
  }
  auto facts = Settle(wanted, *scheme, *qzeros, g_idx, groups);
  if (!facts) {
    return Fail(facts.error(), fmt::format("{}: {}: ", folder_, module));
  }
  WeightSpec spec{.rows = wanted.rows, .cols = wanted.cols};
  const bool ordered = !facts->groups.empty();
  if (!ordered) {
    spec.kind = CodecKind::kUniform;
    spec.bits = bits;
    spec.group_size = group_size;
    spec.has_zero_points = !facts->symmetric;
    spec.has_f32_scales = dtype == DType::kF32;
  }
  num_ordered_ += ordered ? 1 : 0;
  const bool masked =
      facts->rule.zeros == GptqZeros::kMinusOne && !facts->symmetric && !facts->rule.whole_words;
  num_masked_ += masked ? 1 : 0;
  std::vector<Located> parts = {*qweight, *qzeros, *scales};
  if (g_idx != nullptr) {
    parts.push_back(*g_idx);
  }
  const std::string stored_as =
      fmt::format("gptq{} int{}{}", facts->rule.zeros == GptqZeros::kAsTheyAre ? "_v2" : "", bits,
                  ordered ? ", activation order" : "");
  return std::make_unique<GptqWeight>(spec, stored_as, std::move(parts), bits, groups,
                                      std::move(*facts));
}

// Reads zero points and group indices, and holds them against the config.
Result<GptqWeight::Facts> GptqLayout::Settle(const ExpectedWeight& wanted, const GptqScheme& scheme,
                                             const Located& qzeros, const Located* g_idx,
                                             std::int64_t num_groups) const {
  GptqWeight::Facts facts;
  facts.rule.zeros = config_.zeros.value_or(GptqZeros::kMinusOne);
  const int bits = scheme.bits;
  const std::uint32_t middle = 1U << static_cast<unsigned>(bits - 1);
  bool middles = true, middles_minus_one = true;
  std::vector<std::int32_t> groups;
  NIBBLE_TRY_VOID(GuardMappedReads(wanted.name, [&]() -> Result<void> {
    const TensorView words = qzeros.view();
    for (std::int64_t group = 0; group < num_groups && (middles || middles_minus_one); ++group) {
      const std::byte* row = words.bytes.data() + group * words.shape[1] * 4;
      for (std::int64_t i = 0; i < wanted.rows; ++i) {
        const std::uint32_t stored = CodeAt(row, 1, bits, i);
        middles = middles && stored == middle;
        middles_minus_one = middles_minus_one && stored == middle - 1;
      }
    }
    if (g_idx != nullptr) {
      groups.resize(static_cast<std::size_t>(wanted.cols));
      std::memcpy(groups.data(), g_idx->view().bytes.data(), groups.size() * 4);
    }
    return {};
  }));
  const bool symmetric = facts.rule.zeros == GptqZeros::kAsTheyAre ? middles : middles_minus_one;
  const bool other_version =
      facts.rule.zeros == GptqZeros::kAsTheyAre ? middles_minus_one : middles;
  if (scheme.symmetric.value_or(other_version) && !symmetric) {
    // The words of a symmetric weight tell the version; only a config that says another is wrong.
    if (!other_version) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("sym is true, but qzeros are not all {}: set sym to false if the "
                              "quantizer chose zero points, else the file is damaged",
                              middle));
    }
    if (config_.zeros) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("qzeros hold {} as {} does, but checkpoint_format says {}: correct it",
                      middles ? "the middle" : "the middle less one", middles ? "gptq_v2" : "gptq",
                      middles ? "gptq" : "gptq_v2"));
    }
    facts.rule.zeros = GptqZeros::kAsTheyAre;
  } else {
    facts.symmetric = symmetric;
  }
  facts.rule.whole_words = config_.adds_to_words && bits != 3;
  if (g_idx == nullptr) {
    return facts;
  }
  bool in_order = true;
  const std::int64_t group_size = scheme.group_size == 0 ? wanted.cols : scheme.group_size;
  for (std::int64_t i = 0; i < wanted.cols; ++i) {
    const std::int32_t group = groups[static_cast<std::size_t>(i)];
    if (group < 0 || group >= num_groups) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("g_idx[{}] is {}, but there are {} groups: the file is damaged", i,
                              group, num_groups));
    }
    in_order = in_order && group == i / group_size;
  }
  if (!in_order && !scheme.desc_act.value_or(true)) {
    return Fail(ErrorCode::kCorruptFile,
                "g_idx is not i / group_size, but desc_act is false: set desc_act to true if the "
                "quantizer used activation order, else the file is damaged");
  }
  if (!in_order) {
    facts.groups = std::move(groups);
  }
  return facts;
}

// Rows of ours are columns there, so a weight's words are gathered before they are written.
class GptqEncoder final : public WeightEncoder {
 public:
  GptqEncoder(WeightToWrite weight, GptqZeros zeros, DType scale_dtype)
      : module_(weight.name.substr(0, weight.name.rfind('.'))),
        spec_(weight.spec),
        zeros_(zeros),
        scale_dtype_(scale_dtype) {}

  std::vector<SafetensorsEntry> Parts() const override {
    const std::int64_t groups = spec_.num_groups();
    return {
        {.name = module_ + ".qweight",
         .dtype = DType::kI32,
         .shape = Shape{CodeWords(spec_.cols, spec_.bits), spec_.rows}},
        {.name = module_ + ".qzeros",
         .dtype = DType::kI32,
         .shape = Shape{groups, CodeWords(spec_.rows, spec_.bits)}},
        {.name = module_ + ".scales", .dtype = scale_dtype_, .shape = Shape{groups, spec_.rows}},
        {.name = module_ + ".g_idx", .dtype = DType::kI32, .shape = Shape{spec_.cols}}};
  }
  Result<std::string> Add(const QuantizedTensor& rows) override {
    if (next_row_ == 0) {
      Clear();
    }
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    const std::int64_t groups = spec_.num_groups();
    const std::uint32_t middle = 1U << static_cast<unsigned>(spec_.bits - 1);
    const std::uint32_t less = zeros_ == GptqZeros::kMinusOne ? 1 : 0;
    for (std::int64_t row = 0; row < rows.spec.rows; ++row, ++next_row_) {
      const std::uint8_t* codes = rows.codes.data() + row * spec_.cols;
      const auto words = std::span(words_).subspan(size(next_row_));
      for (std::int64_t col = 0; col < spec_.cols; ++col) {
        PutCode(words, spec_.rows, spec_.bits, col, codes[col]);
      }
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::size_t at = size(row * groups + group);
        scales_[size(group * spec_.rows + next_row_)] = rows.scales[at];
        const std::uint32_t zero = spec_.has_zero_points ? rows.zero_points[at] : middle;
        PutCode(std::span(zero_words_).subspan(size(group * CodeWords(spec_.rows, spec_.bits))), 1,
                spec_.bits, next_row_, zero - less);
      }
    }
    return std::string();
  }
  std::vector<std::string> Finish() override {
    const auto bytes = [](const auto& words) {
      return std::string(reinterpret_cast<const char*>(words.data()), words.size() * 4);
    };
    std::vector<std::int32_t> groups;
    for (std::int64_t col = 0; col < spec_.cols; ++col) {
      groups.push_back(static_cast<std::int32_t>(col / spec_.group_size));
    }
    std::vector<std::string> out = {bytes(words_), bytes(zero_words_), "", bytes(groups)};
    AppendFloats(scales_, scale_dtype_, out[2]);
    next_row_ = 0;
    return out;
  }
  DType ScaleDType() const override { return scale_dtype_; }

 private:
  void Clear() {
    const std::int64_t groups = spec_.num_groups();
    words_.assign(static_cast<std::size_t>(CodeWords(spec_.cols, spec_.bits) * spec_.rows), 0);
    zero_words_.assign(static_cast<std::size_t>(groups * CodeWords(spec_.rows, spec_.bits)), 0);
    scales_.assign(static_cast<std::size_t>(groups * spec_.rows), 0.0F);
  }

  std::string module_;
  WeightSpec spec_;
  GptqZeros zeros_;
  DType scale_dtype_;
  std::vector<std::uint32_t> words_, zero_words_;
  std::vector<float> scales_;
  std::int64_t next_row_ = 0;
};

}  // namespace

Result<std::unique_ptr<WeightLayout>> MakeGptqLayout(const json::Value& config,
                                                     const std::string& source) {
  NIBBLE_TRY(parsed, GptqConfig::Parse(config, source));
  return std::make_unique<GptqLayout>(std::move(parsed), source.substr(0, source.rfind('/')));
}

Result<std::unique_ptr<WeightEncoder>> MakeGptqEncoder(const WeightToWrite& weight, bool v2,
                                                       const EncoderOptions& options) {
  const WeightSpec& spec = weight.spec;
  const auto wrong = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: {}", weight.name, what));
  };
  const bool bits = spec.bits == 2 || spec.bits == 3 || spec.bits == 4 || spec.bits == 8;
  if (spec.kind != CodecKind::kUniform || !bits) {
    return wrong(
        fmt::format("{} has no place in GPTQ, which stores uniform integers of 2, 3, 4 or 8 "
                    "bits",
                    spec.ToString()));
  }
  if (spec.has_zero_points && !v2) {
    return wrong(
        "zero points do not survive GPTQ of version 1, which stores them less one: use gptq_v2, "
        "awq "
        "or compressed-tensors");
  }
  if (spec.group_size < 1 || spec.cols % spec.group_size != 0) {
    return wrong(
        fmt::format("groups of {} do not divide its width of {}", spec.group_size, spec.cols));
  }
  if (spec.cols * spec.bits % 32 != 0 || spec.rows * spec.bits % 32 != 0) {
    return wrong(
        fmt::format("[{}, {}] codes of {} bits do not fill words of 32 bits, as GPTQ needs",
                    spec.rows, spec.cols, spec.bits));
  }
  return std::make_unique<GptqEncoder>(weight, v2 ? GptqZeros::kAsTheyAre : GptqZeros::kMinusOne,
                                       options.scale_dtype);
}

}  // namespace nibble
