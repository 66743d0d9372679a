#include "checkpoint/compressed_tensors_scheme.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/text.h"
#include "checkpoint/module_rule.h"

namespace nibble {
namespace {

constexpr std::string_view kRegexPrefix = "re:";
constexpr std::size_t kPatternBytes = 1024;
constexpr std::size_t kPatterns = 4096;

// A target or an ignore entry.
struct Rule {
  std::string text;
  std::optional<ModuleRule> expression;  // "re:"
  std::size_t scheme = 0;
};

bool IsPresent(const json::Value* value) {
  return value != nullptr && !value->IsNull() &&
         !(value->AsObject() != nullptr && value->AsObject()->empty()) &&
         !(value->AsArray() != nullptr && value->AsArray()->empty());
}

std::string Spelling(const json::Value* value) {
  if (value == nullptr) {
    return "(missing)";
  }
  return Quote(value->AsString() != nullptr ? *value->AsString() : json::Dump(*value));
}

}  // namespace

struct CompressedTensorsRules::Impl {
  std::vector<CompressedTensorsScheme> schemes;
  std::vector<Rule> targets, ignored;
  std::vector<std::string> warnings;
  std::string source;

  Result<void> Read(const json::Value& config);
  Result<void> ReadGroup(const std::string& name, const json::Value& group,
                         const std::string& format);
  Result<void> ReadRules(const json::Value* list, const std::string& where, std::size_t scheme,
                         std::vector<Rule>& out) const;
  tl::unexpected<Error> Corrupt(const std::string& what) const {
    return Fail(ErrorCode::kCorruptFile, fmt::format("{}: quantization_config: {}", source, what));
  }
  tl::unexpected<Error> Unsupported(const std::string& what) const {
    return Fail(ErrorCode::kUnsupported, fmt::format("{}: quantization_config: {}", source, what));
  }
};

Result<void> CompressedTensorsRules::Impl::ReadRules(const json::Value* list,
                                                     const std::string& where, std::size_t scheme,
                                                     std::vector<Rule>& out) const {
  if (list == nullptr || list->IsNull()) {
    return {};
  }
  if (list->AsArray() == nullptr || list->AsArray()->size() > kPatterns) {
    return Corrupt(fmt::format("{} is not a list of at most {} names", where, kPatterns));
  }
  for (const json::Value& item : *list->AsArray()) {
    if (item.AsString() == nullptr || item.AsString()->size() > kPatternBytes) {
      return Corrupt(
          fmt::format("{} holds something else than a name of {} bytes", where, kPatternBytes));
    }
    Rule rule{.text = *item.AsString(), .scheme = scheme};
    if (rule.text.starts_with(kRegexPrefix)) {
      auto expression =
          ModuleRule::Compile(std::string_view(rule.text).substr(kRegexPrefix.size()));
      if (!expression) {
        return Corrupt(fmt::format("{}: {}", where, expression.error().message));
      }
      rule.expression = std::move(*expression);
    }
    out.push_back(std::move(rule));
  }
  return {};
}

Result<void> CompressedTensorsRules::Impl::ReadGroup(const std::string& name,
                                                     const json::Value& group,
                                                     const std::string& format) {
  const std::string at = fmt::format("group \"{}\"", Quote(name));
  CompressedTensorsScheme scheme{.group = name, .format = format};
  if (const json::Value* own = group.Find("format"); own != nullptr && own->AsString() != nullptr) {
    scheme.format = *own->AsString();
  }
  const json::Value* weights = group.Find("weights");
  if (weights == nullptr || !weights->IsObject()) {
    return Corrupt(at + " says nothing about weights");
  }
  const json::Value* type = weights->Find("type");
  scheme.is_fp8 = type != nullptr && *type == json::Value("float");
  if (scheme.format == "naive-quantized") {
    scheme.format = scheme.is_fp8 ? "float-quantized" : "int-quantized";
  }
  const bool mx = scheme.format == "mxfp4-pack-quantized";
  const bool nv = scheme.format == "nvfp4-pack-quantized";
  if (scheme.format != "pack-quantized" && scheme.format != "int-quantized" &&
      scheme.format != "float-quantized" && !mx && !nv) {
    return Unsupported(
        fmt::format("{}: format \"{}\" is not read yet (pack-, int-, float-, mxfp4-pack- and "
                    "nvfp4-pack-quantized are)",
                    at, Quote(scheme.format)));
  }
  const bool is_float = scheme.is_fp8;
  scheme.is_fp4 = is_float && (mx || nv);
  scheme.is_fp8 = is_float && !scheme.is_fp4;
  if ((type != nullptr && !is_float && !(*type == json::Value("int"))) ||
      is_float != (mx || nv || scheme.format == "float-quantized")) {
    return Unsupported(fmt::format("{}: weights of type {} are not read yet as {}", at,
                                   Spelling(type), scheme.format));
  }
  const json::Value* bits = weights->Find("num_bits");
  if (bits == nullptr || !bits->AsInt() || *bits->AsInt() < 1 || *bits->AsInt() > 16) {
    return Corrupt(fmt::format("{}: num_bits is {}", at, Spelling(bits)));
  }
  scheme.bits = static_cast<int>(*bits->AsInt());
  if (scheme.is_fp8 && scheme.bits != 8) {
    return Unsupported(
        fmt::format("{}: float weights of {} bits are not read yet (8 are)", at, scheme.bits));
  }
  if (scheme.is_fp4 && scheme.bits != 4) {
    return Corrupt(
        fmt::format("{}: {} has 4 bits, num_bits says {}", at, scheme.format, scheme.bits));
  }
  if (scheme.bits < 2 || scheme.bits > 8 ||
      (scheme.bits != 8 && scheme.format == "int-quantized")) {
    return Unsupported(fmt::format("{}: weights of {} bits are not read as {} ({})", at,
                                   scheme.bits, scheme.format,
                                   scheme.format == "int-quantized" ? "8 are" : "2 to 8 are"));
  }
  if (const json::Value* symmetric = weights->Find("symmetric")) {
    scheme.symmetric = symmetric->AsBool().value_or(true);
  }
  const json::Value* strategy = weights->Find("strategy");
  const json::Value* size = weights->Find("group_size");
  const bool has_size = size != nullptr && size->AsInt() && *size->AsInt() > 0;
  const bool grouped =
      strategy == nullptr || strategy->IsNull()
          ? has_size
          : *strategy == json::Value("group") || (nv && *strategy == json::Value("tensor_group"));
  const bool whole = strategy != nullptr && *strategy == json::Value("tensor");
  const bool blocked = scheme.is_fp8 && strategy != nullptr && *strategy == json::Value("block");
  const bool known = strategy == nullptr || strategy->IsNull() || grouped || blocked ||
                     *strategy == json::Value("channel") || whole;
  if (!known || (scheme.is_fp8 && grouped)) {
    return Unsupported(fmt::format(
        "{}: strategy {} is not read yet (group, channel and tensor are)", at, Spelling(strategy)));
  }
  const std::int64_t block = mx ? 32 : 16;
  if (scheme.is_fp4 && (!grouped || (has_size && *size->AsInt() != block))) {
    return Corrupt(fmt::format("{}: {} comes in groups of {}, strategy is {} and group_size {}", at,
                               scheme.format, block, Spelling(strategy), Spelling(size)));
  }
  scheme.has_one_scale = whole;
  if (grouped && !has_size && !scheme.is_fp4) {
    return Corrupt(fmt::format("{}: group_size is {}", at, Spelling(size)));
  }
  scheme.group_size = scheme.is_fp4 ? block : grouped ? *size->AsInt() : 0;
  if (blocked) {
    const json::Value* shape = weights->Find("block_structure");
    if (shape != nullptr && !(*shape == json::Value(json::Array{128, 128}))) {
      return Unsupported(
          fmt::format("{}: blocks of {} are not read yet ([128, 128] are)", at, Spelling(shape)));
    }
    scheme.group_size = 128;
  }
  if (const json::Value* order = weights->Find("actorder"); order != nullptr) {
    if (*order == json::Value("group") || *order == json::Value("dynamic")) {
      return Unsupported(at +
                         ": activation order with stored indices (actorder \"group\") is not "
                         "read yet");
    }
  }
  if (IsPresent(group.Find("input_activations"))) {
    warnings.push_back(fmt::format(
        "{}: {} quantizes activations too; nibble applies its own activation mode", source, at));
  }
  schemes.push_back(std::move(scheme));
  return ReadRules(group.Find("targets"), at + ": targets", schemes.size() - 1, targets);
}

Result<void> CompressedTensorsRules::Impl::Read(const json::Value& config) {
  for (const char* key : {"transform_config", "sparsity_config"}) {
    const json::Value* value = config.Find(key);
    const json::Value* format = value == nullptr ? nullptr : value->Find("format");
    if (IsPresent(value) && !(format != nullptr && *format == json::Value("dense"))) {
      return Unsupported(fmt::format("{} is not supported", key));
    }
  }
  if (IsPresent(config.Find("kv_cache_scheme"))) {
    warnings.push_back(fmt::format(
        "{}: kv_cache_scheme does not choose the KV cache, --kv-cache-dtype does", source));
  }
  const json::Value* format = config.Find("format");
  if (format == nullptr || format->AsString() == nullptr) {
    return Corrupt("format is missing");
  }
  const json::Value* groups = config.Find("config_groups");
  if (groups == nullptr || groups->AsObject() == nullptr) {
    return Corrupt("config_groups is missing");
  }
  for (const auto& [name, group] : *groups->AsObject()) {
    NIBBLE_TRY_VOID(ReadGroup(name, group, *format->AsString()));
  }
  NIBBLE_TRY_VOID(ReadRules(config.Find("ignore"), "ignore", 0, ignored));
  // The library sorts expressions by their text, so that the order of groups decides nothing.
  std::ranges::stable_sort(targets, {}, &Rule::text);
  return {};
}

CompressedTensorsRules::CompressedTensorsRules(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
CompressedTensorsRules::CompressedTensorsRules(CompressedTensorsRules&&) noexcept = default;
CompressedTensorsRules& CompressedTensorsRules::operator=(CompressedTensorsRules&&) noexcept =
    default;
CompressedTensorsRules::~CompressedTensorsRules() = default;

Result<CompressedTensorsRules> CompressedTensorsRules::Parse(const json::Value& config,
                                                             const std::string& source) {
  auto impl = std::make_unique<Impl>();
  impl->source = source;
  NIBBLE_TRY_VOID(impl->Read(config));
  return CompressedTensorsRules(std::move(impl));
}

const CompressedTensorsScheme* CompressedTensorsRules::Find(std::string_view module,
                                                            std::string_view class_name) const {
  const auto applies = [&](const Rule& rule) {
    return rule.expression ? rule.expression->Matches(module)
                           : rule.text == module || rule.text == class_name;
  };
  if (std::ranges::any_of(impl_->ignored, applies)) {
    return nullptr;
  }
  const auto first = [&](auto&& test) -> const CompressedTensorsScheme* {
    const auto found = std::ranges::find_if(impl_->targets, test);
    return found == impl_->targets.end() ? nullptr : &impl_->schemes[found->scheme];
  };
  if (const auto* named = first([&](const Rule& r) { return !r.expression && r.text == module; })) {
    return named;
  }
  if (const auto* like =
          first([&](const Rule& r) { return r.expression && r.expression->Matches(module); })) {
    return like;
  }
  return first([&](const Rule& r) { return !r.expression && r.text == class_name; });
}

const std::vector<std::string>& CompressedTensorsRules::warnings() const { return impl_->warnings; }

}  // namespace nibble
