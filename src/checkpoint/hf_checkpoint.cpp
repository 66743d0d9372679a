// A Hugging Face folder: float safetensors, the compressed-tensors layouts pack-, int-, float-,
// mxfp4-pack- and nvfp4-pack-quantized, FP8, and what stored_weight.h knows (GPTQ, AWQ,
// bitsandbytes, nibble's own).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <set>

#include "base/limits.h"
#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/code_words.h"
#include "checkpoint/compressed_tensors_scheme.h"
#include "checkpoint/kv_scales.h"
#include "checkpoint/nibble_layout.h"
#include "checkpoint/stored_weight.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightSuffix = ".weight";

// The stored tensors of one canonical weight. Which are set depends on the layout.
struct Parts {
  std::optional<Located> plain;  // values, int8 codes of int-quantized, or FP8 codes
  std::optional<Located> packed, scale, zero_point, shape;
  std::optional<Located> global_scale;  // of NVFP4
  // Words hold whole codes and spare bits, as compressed-tensors packed 3, 5, 6 and 7 bits until
  // May 2026; else one stream of bits.
  bool whole_codes = false;
  std::unique_ptr<StoredWeight> stored;  // of a WeightLayout: nothing else is set then

  /// What there is, in a fixed order.
  std::vector<Located> All() const {
    if (stored) {
      return stored->parts();
    }
    std::vector<Located> out;
    for (const auto* part : {&plain, &packed, &scale, &global_scale, &zero_point, &shape}) {
      if (*part) {
        out.push_back(**part);
      }
    }
    return out;
  }
};

class HuggingFaceCheckpoint final : public CheckpointBase {
 public:
  CheckpointFormat format() const override { return CheckpointFormat::kSafetensors; }
  Result<QuantizedTensor> ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                   std::int64_t row_end) const override;
  Result<std::vector<std::span<const std::byte>>> RawParts(const WeightInfo& weight) const override;
  void Release(const WeightInfo& weight) const override;

  Result<void> Open(const fs::path& folder);

 private:
  Result<fs::path> FileInside(const std::string& name) const;
  Result<std::optional<std::string>> OptionalText(const std::string& name, std::size_t limit) const;
  Result<void> ReadSideFiles();
  Result<void> ReadTokenizerConfig(const std::string& text);
  Result<void> OpenWeightFiles();
  Result<void> ReadSideConfig();
  Result<void> ChooseMethod();
  Result<void> RefuseForeignLayouts() const;
  Result<void> MapWeights();
  void AddWeight(const ExpectedWeight& wanted, const WeightSpec& spec, const std::string& stored_as,
                 Parts parts);
  Result<WeightSpec> SpecOf(const ExpectedWeight& wanted, Parts& parts) const;
  Result<WeightSpec> Fp8SpecOf(const ExpectedWeight& wanted, const Parts& parts) const;
  Result<WeightSpec> Fp4SpecOf(const ExpectedWeight& wanted, const Parts& parts) const;
  Result<void> CheckDeclared();
  Result<void> CheckCodebook(Codebook codebook) const;
  Result<void> CheckLayout() const;
  const CompressedTensorsScheme* SchemeOf(const std::string& weight) const;
  std::string At(std::string_view file) const { return (path_ / file).string(); }

  std::string quantization_source_ = "config.json";  // the file that quantization_config is from
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  TensorMap tensors_;
  std::unique_ptr<WeightLayout> layout_;  // of quantization_config's method, where it has one
  std::optional<CompressedTensorsRules> rules_;  // of compressed-tensors
  std::map<std::string, Parts> parts_;
};

// The folder of a hub snapshot links into ../../blobs; everything else must stay beneath the
// folder.
Result<fs::path> HuggingFaceCheckpoint::FileInside(const std::string& name) const {
  if (name.empty() || name.find('/') != std::string::npos || name == "..") {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: file name \"{}\" leaves the folder", path_.string(), Quote(name)));
  }
  const fs::path file = path_ / name;
  std::error_code error;
  const fs::path real = fs::weakly_canonical(file, error);
  fs::path root = fs::weakly_canonical(path_, error);
  if (root.parent_path().filename() == "snapshots") {
    root = root.parent_path().parent_path();
  }
  const auto [end, ignored] = std::mismatch(root.begin(), root.end(), real.begin(), real.end());
  if (end != root.end()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: is a link that leaves the model's folder; copy the file there",
                            file.string()));
  }
  return file;
}

Result<std::optional<std::string>> HuggingFaceCheckpoint::OptionalText(const std::string& name,
                                                                       std::size_t limit) const {
  std::error_code ignored;
  if (!fs::exists(path_ / name, ignored)) {
    return std::optional<std::string>();
  }
  NIBBLE_TRY(file, FileInside(name));
  NIBBLE_TRY(text, ReadFile(file, limit));
  return std::optional<std::string>(std::move(text));
}

Result<void> HuggingFaceCheckpoint::Open(const fs::path& folder) {
  path_ = folder;
  NIBBLE_TRY(config_text, OptionalText("config.json", limits::kConfigJsonBytes));
  NIBBLE_TRY_VOID(ReadSideFiles());
  if (!config_text) {
    if (tokenizer_json_) {
      return {};  // a tokenizer alone: good for tokenizing and for templates
    }
    return Fail(
        ErrorCode::kNotFound,
        fmt::format("{}: there is no config.json; is this a model's folder?", folder.string()));
  }
  auto config = json::Parse(*config_text);
  if (!config) {
    return Fail(config.error(), At("config.json") + ": ");
  }
  NIBBLE_TRY(parsed, ParseModelConfig(*config, At("config.json")));
  config_ = parsed;
  if (const json::Value* quantization = config->Find("quantization_config");
      quantization != nullptr && !quantization->IsNull()) {
    quantization_config_ = *quantization;
  }
  NIBBLE_TRY_VOID(ReadSideConfig());
  NIBBLE_TRY_VOID(ChooseMethod());
  NIBBLE_TRY_VOID(OpenWeightFiles());
  NIBBLE_TRY_VOID(RefuseForeignLayouts());
  return MapWeights();
}

Result<void> HuggingFaceCheckpoint::ReadSideFiles() {
  NIBBLE_TRY(tokenizer, OptionalText("tokenizer.json", limits::kTokenizerJsonBytes));
  tokenizer_json_ = std::move(tokenizer);
  NIBBLE_TRY(tokenizer_config, OptionalText("tokenizer_config.json", limits::kConfigJsonBytes));
  tokenizer_config_json_ = std::move(tokenizer_config);
  if (tokenizer_config_json_) {
    NIBBLE_TRY_VOID(ReadTokenizerConfig(*tokenizer_config_json_));
  }
  NIBBLE_TRY(chat_template, OptionalText("chat_template.jinja", limits::kTemplateBytes));
  if (chat_template) {
    chat_template_ = std::move(chat_template);
  }
  NIBBLE_TRY(certificate, OptionalText("nibble_certificate.json", limits::kConfigJsonBytes));
  if (certificate) {
    auto parsed = json::Parse(*certificate);
    if (!parsed) {
      return Fail(parsed.error(), At("nibble_certificate.json") + ": ");
    }
    certificate_ = std::move(*parsed);
  }
  NIBBLE_TRY(generation, OptionalText("generation_config.json", limits::kConfigJsonBytes));
  generation_config_json_ = std::move(generation);
  if (generation_config_json_) {
    auto parsed = json::Parse(*generation_config_json_);
    if (!parsed) {
      return Fail(parsed.error(), At("generation_config.json") + ": ");
    }
    const auto number = [&](const char* key) -> std::optional<double> {
      const json::Value* value = parsed->Find(key);
      return value == nullptr ? std::nullopt : value->AsDouble();
    };
    const auto whole = [&](const char* key) -> std::optional<std::int64_t> {
      const json::Value* value = parsed->Find(key);
      return value == nullptr ? std::nullopt : value->AsInt();
    };
    generation_.temperature = number("temperature");
    generation_.top_p = number("top_p");
    generation_.min_p = number("min_p");
    generation_.repetition_penalty = number("repetition_penalty");
    generation_.top_k = whole("top_k");
    generation_.max_new_tokens = whole("max_new_tokens");
    if (const json::Value* flag = parsed->Find("do_sample")) {
      generation_.do_sample = flag->AsBool();
    }
    if (const json::Value* end = parsed->Find("eos_token_id")) {
      const auto add = [&](const json::Value& value) {
        if (const auto id = value.AsInt(); id && *id >= 0 && *id <= INT32_MAX) {
          generation_.eos_token_ids.push_back(TokenId{static_cast<std::int32_t>(*id)});
        }
      };
      if (const json::Array* list = end->AsArray()) {
        std::ranges::for_each(*list, add);
      } else {
        add(*end);
      }
    }
  }
  return {};
}

Result<void> HuggingFaceCheckpoint::ReadTokenizerConfig(const std::string& text) {
  auto parsed = json::Parse(text, {.duplicates = json::DuplicateKeys::kKeepLast});
  if (!parsed) {
    return Fail(parsed.error(), At("tokenizer_config.json") + ": ");
  }
  const auto token = [&](const char* key) -> std::string {
    const json::Value* value = parsed->Find(key);
    if (value != nullptr && value->IsObject()) {
      value = value->Find("content");
    }
    return value == nullptr || value->AsString() == nullptr ? std::string() : *value->AsString();
  };
  bos_token_ = token("bos_token");
  eos_token_ = token("eos_token");
  const json::Value* chat = parsed->Find("chat_template");
  if (chat == nullptr) {
    return {};
  }
  if (const std::string* source = chat->AsString()) {
    chat_template_ = *source;
  } else if (const json::Array* named = chat->AsArray()) {
    for (const json::Value& item : *named) {
      const json::Value* name = item.Find("name");
      const json::Value* named_source = item.Find("template");
      if (name != nullptr && named_source != nullptr && named_source->AsString() != nullptr &&
          *name == json::Value("default")) {
        chat_template_ = *named_source->AsString();
      }
    }
  }
  return {};
}

Result<void> HuggingFaceCheckpoint::OpenWeightFiles() {
  std::error_code ignored;
  std::vector<std::string> names;
  std::map<std::string, std::string> weight_map;
  NIBBLE_TRY(index, OptionalText("model.safetensors.index.json", limits::kSafetensorsHeaderBytes));
  if (index) {
    auto parsed = json::Parse(*index, {.max_bytes = limits::kSafetensorsHeaderBytes});
    if (!parsed) {
      return Fail(parsed.error(), At("model.safetensors.index.json") + ": ");
    }
    const json::Value* map = parsed->Find("weight_map");
    if (map == nullptr || map->AsObject() == nullptr) {
      return Fail(ErrorCode::kCorruptFile,
                  At("model.safetensors.index.json") + ": weight_map is missing");
    }
    std::set<std::string> unique;
    for (const auto& [tensor, file] : *map->AsObject()) {
      if (file.AsString() == nullptr) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}: tensor {} has no file", At("model.safetensors.index.json"),
                                Quote(tensor)));
      }
      weight_map[tensor] = *file.AsString();
      unique.insert(*file.AsString());
    }
    names.assign(unique.begin(), unique.end());
  } else if (fs::exists(path_ / "model.safetensors", ignored)) {
    names = {"model.safetensors"};
  } else if (fs::exists(path_ / "pytorch_model.bin", ignored) ||
             fs::exists(path_ / "pytorch_model.bin.index.json", ignored)) {
    return Fail(ErrorCode::kUnsupported, PickledMessage(At("pytorch_model.bin")));
  } else {
    return Fail(ErrorCode::kNotFound, fmt::format("{}: there is no model.safetensors and no "
                                                  "model.safetensors.index.json",
                                                  path_.string()));
  }
  for (const std::string& name : names) {
    NIBBLE_TRY(path, FileInside(name));
    NIBBLE_TRY(file, SafetensorsFile::Open(path));
    for (const SafetensorsEntry& entry : file->entries()) {
      const auto mapped = weight_map.find(entry.name);
      if (index && (mapped == weight_map.end() || mapped->second != name)) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}: tensor {} is not listed for this file in the index",
                                path.string(), Quote(entry.name)));
      }
      tensors_[entry.name] = {file.get(), &entry};
    }
    files_.push_back(std::move(file));
  }
  for (const auto& [tensor, file] : weight_map) {
    if (!tensors_.contains(tensor)) {
      return Fail(
          ErrorCode::kCorruptFile,
          fmt::format("{}: tensor {} is missing, the index promises it", At(file), Quote(tensor)));
    }
  }
  return {};
}

constexpr std::int64_t kFp8Block = 128;  // rows and columns that share a scale

bool IsScaleType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

constexpr const char* kReads =
    "nibble reads float safetensors, compressed-tensors, GPTQ, AWQ, FP8, bitsandbytes, and GGUF";

// Old GPTQ and AWQ folders tell their method in a file of its own.
Result<void> HuggingFaceCheckpoint::ReadSideConfig() {
  if (quantization_config_) {
    return {};
  }
  for (const auto& [name, method] :
       {std::pair{"quantize_config.json", "gptq"}, std::pair{"quant_config.json", "awq"}}) {
    NIBBLE_TRY(text, OptionalText(name, limits::kConfigJsonBytes));
    if (!text) {
      continue;
    }
    auto parsed = json::Parse(*text);
    if (!parsed) {
      return Fail(parsed.error(), At(name) + ": ");
    }
    if (parsed->AsObject() == nullptr) {
      return Fail(ErrorCode::kCorruptFile, At(name) + ": is no object");
    }
    if (parsed->Find("quant_method") == nullptr) {
      parsed->AsObject()->Set("quant_method", method);
    }
    quantization_config_ = std::move(*parsed);
    quantization_source_ = name;
    return {};
  }
  return {};
}

// By what the config announces, before any weight file is opened.
Result<void> HuggingFaceCheckpoint::ChooseMethod() {
  const struct {
    std::string_view method, what;
  } kMethods[] = {{"fbgemm_fp8", "FP8 (fbgemm)"},
                  {"modelopt", "ModelOpt"},
                  {"auto-round", "AutoRound"},
                  {"mxfp4", "MXFP4"}};
  const auto refuse = [&](std::string_view what, std::string_view found) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: this checkpoint is {} (found {}), which a later version reads; {}",
                            path_.string(), what, found, kReads));
  };
  if (!quantization_config_) {
    std::error_code ignored;
    return fs::exists(path_ / "hf_quant_config.json", ignored)
               ? refuse("ModelOpt", "hf_quant_config.json")
               : Result<void>{};
  }
  const json::Value* method = quantization_config_->Find("quant_method");
  const std::string* name = method == nullptr ? nullptr : method->AsString();
  const std::string source = At(quantization_source_);
  if (name == nullptr) {
    return Fail(ErrorCode::kUnsupported,
                fmt::format("{}: quantization_config has no quant_method: add the one that made "
                            "these weights; {}",
                            source, kReads));
  }
  if (*name == "compressed-tensors" && IsNibbleConfig(*quantization_config_)) {
    NIBBLE_TRY(layout, MakeNibbleLayout(*quantization_config_, source));
    layout_ = std::move(layout);
    return {};
  }
  if (*name == "compressed-tensors") {
    NIBBLE_TRY(rules, CompressedTensorsRules::Parse(*quantization_config_, source));
    warnings_.insert(warnings_.end(), rules.warnings().begin(), rules.warnings().end());
    rules_ = std::move(rules);
    return {};
  }
  if (*name == "fp8") {
    const json::Value* block = quantization_config_->Find("weight_block_size");
    const json::Value* kind = quantization_config_->Find("fmt");
    if (block != nullptr && !block->IsNull() &&
        !(*block == json::Value(json::Array{kFp8Block, kFp8Block}))) {
      return refuse("FP8 in other blocks than [128, 128]", "weight_block_size");
    }
    return kind == nullptr || *kind == json::Value("e4m3") ? Result<void>{}
                                                           : refuse("FP8, not e4m3", "fmt");
  }
  if (*name == "gptq") {
    NIBBLE_TRY(layout, MakeGptqLayout(*quantization_config_, source));
    layout_ = std::move(layout);
    return {};
  }
  if (*name == "awq") {
    NIBBLE_TRY(layout, MakeAwqLayout(*quantization_config_, source));
    layout_ = std::move(layout);
    return {};
  }
  if (*name == "bitsandbytes") {
    NIBBLE_TRY(layout, MakeBitsandbytesLayout(*quantization_config_, source));
    layout_ = std::move(layout);
    return {};
  }
  for (const auto& known : kMethods) {
    if (*name == known.method) {
      return refuse(known.what, fmt::format("quant_method \"{}\"", *name));
    }
  }
  return refuse(fmt::format("quantized with \"{}\"", Quote(*name)), "in quantization_config");
}

// By the names of the tensors: what no method of ours reads, and what another method than the
// announced one wrote.
Result<void> HuggingFaceCheckpoint::RefuseForeignLayouts() const {
  const struct {
    std::string_view suffix, what;
    std::vector<std::string_view> methods;  // that read it; none: nobody here does
  } kLayouts[] = {{".qweight", "GPTQ or AWQ", {"gptq", "awq"}},
                  {".weight.absmax", "bitsandbytes 4-bit", {"bitsandbytes"}},
                  {".weight.quant_state.bitsandbytes__nf4", "bitsandbytes 4-bit", {"bitsandbytes"}},
                  {".weight.quant_state.bitsandbytes__fp4", "bitsandbytes 4-bit", {"bitsandbytes"}},
                  {".SCB", "bitsandbytes int8", {"bitsandbytes"}},
                  {".weight_packed", "compressed-tensors", {"compressed-tensors"}},
                  {".weight_scale_inv", "FP8", {"fp8", "compressed-tensors"}},
                  {".trellis", "EXL3", {}},
                  {".weight_g_idx", "compressed-tensors with activation order", {}}};
  const json::Value* member =
      quantization_config_ ? quantization_config_->Find("quant_method") : nullptr;
  const std::string method = member == nullptr ? std::string() : *member->AsString();
  for (const auto& [name, located] : tensors_) {
    for (const auto& layout : kLayouts) {
      if (!name.ends_with(layout.suffix) ||
          std::ranges::find(layout.methods, method) != layout.methods.end()) {
        continue;
      }
      const std::string found = fmt::format("{}: this checkpoint is {} (found {})", path_.string(),
                                            layout.what, Quote(name));
      if (layout.methods.empty()) {
        return Fail(ErrorCode::kUnsupported,
                    fmt::format("{}, which a later version reads; {}", found, kReads));
      }
      if (method.empty()) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}, but config.json has no quantization_config: add the one that "
                                "it was published with (quant_method \"{}\"){}",
                                found, fmt::join(layout.methods, "\" or \""),
                                layout.suffix == ".qweight"
                                    ? ", or its quantize_config.json (GPTQ) or quant_config.json "
                                      "(AWQ)"
                                    : ""));
      }
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}, but quantization_config says \"{}\", whose reader cannot read "
                              "it: set quant_method to \"{}\" with what belongs to it",
                              found, Quote(method), fmt::join(layout.methods, "\" or \"")));
    }
  }
  return {};
}

// The quantized weights of a method that has one codebook: there are some, and they use it.
Result<void> HuggingFaceCheckpoint::CheckCodebook(Codebook codebook) const {
  bool any = false;
  for (const WeightInfo& weight : weights_) {
    if (weight.spec.kind != CodecKind::kFloat && weight.spec.codebook != codebook) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: tensor {} is {}, quantization_config says {}", At("config.json"),
                              weight.name, weight.stored_as, Name(codebook)));
    }
    any |= weight.spec.codebook == codebook;
  }
  if (!any) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: quantization_config says {}, but no weight is stored so",
                            At("config.json"), Name(codebook)));
  }
  return {};
}

// What compressed-tensors' config says of a matrix.
const CompressedTensorsScheme* HuggingFaceCheckpoint::SchemeOf(const std::string& weight) const {
  if (!rules_ || !weight.ends_with(kWeightSuffix)) {
    return nullptr;
  }
  const std::string module = weight.substr(0, weight.size() - kWeightSuffix.size());
  return rules_->Find(module, module == "model.embed_tokens" ? "Embedding" : "Linear");
}

// Every quantized weight is the layout's, and there are some.
Result<void> HuggingFaceCheckpoint::CheckLayout() const {
  const std::string method = IsNibbleConfig(*quantization_config_)
                                 ? "nibble's own layout"
                                 : *quantization_config_->Find("quant_method")->AsString();
  bool any = false;
  for (const WeightInfo& weight : weights_) {
    const bool stored = parts_.at(weight.name).stored != nullptr;
    if (!stored && weight.spec.kind != CodecKind::kFloat) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: tensor {} is {}, quantization_config says {}",
                              At(quantization_source_), weight.name, weight.stored_as, method));
    }
    any = any || stored;
  }
  return any ? Result<void>{}
             : Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}: quantization_config says {}, but no weight is stored so: "
                                "remove quantization_config if the weights are floats",
                                At(quantization_source_), method));
}

// What is stored decides how it is read; this checks that quantization_config says the same.
Result<void> HuggingFaceCheckpoint::CheckDeclared() {
  if (!quantization_config_) {
    for (const WeightInfo& weight : weights_) {
      if (weight.spec.kind != CodecKind::kFloat) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}: tensor {} is {}, but there is no quantization_config",
                                At("config.json"), weight.name, weight.stored_as));
      }
    }
    return {};
  }
  if (layout_) {
    const auto told = layout_->Warnings();
    warnings_.insert(warnings_.end(), told.begin(), told.end());
    return CheckLayout();
  }
  const std::string& method = *quantization_config_->Find("quant_method")->AsString();
  if (method == "fp8") {
    warnings_.push_back(
        fmt::format("{}: FP8 quantizes activations too; nibble applies its own activation mode",
                    At("config.json")));
    return CheckCodebook(Codebook::kFp8E4M3);
  }
  for (const WeightInfo& weight : weights_) {
    if (weight.spec.rows == 1 || !weight.name.ends_with(kWeightSuffix)) {
      continue;
    }
    const CompressedTensorsScheme* scheme = SchemeOf(weight.name);
    const auto differs = [&](const std::string& how) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: tensor {} {}", At("config.json"), weight.name, how));
    };
    const bool is_float = weight.spec.kind == CodecKind::kFloat;
    if (scheme == nullptr && is_float) {
      continue;
    }
    if (scheme == nullptr) {
      return differs(
          fmt::format("is {}, but no group of quantization_config targets it", weight.stored_as));
    }
    if (is_float) {
      return differs(fmt::format("is {}, but group \"{}\" says {} with {} bits", weight.stored_as,
                                 Quote(scheme->group), scheme->format, scheme->bits));
    }
    if ((weight.spec.codebook == Codebook::kFp8E4M3) != scheme->is_fp8 ||
        (weight.spec.codebook == Codebook::kE2M1) != scheme->is_fp4) {
      return differs(fmt::format("is {}, group \"{}\" says {}", weight.stored_as,
                                 Quote(scheme->group), scheme->format));
    }
    if (weight.spec.bits != scheme->bits) {
      return differs(
          fmt::format("holds {} bits, num_bits says {}", weight.spec.bits, scheme->bits));
    }
    if (weight.spec.kind == CodecKind::kUniform &&
        weight.spec.has_zero_points == scheme->symmetric) {
      return differs(fmt::format("has {} zero points, symmetric says otherwise",
                                 weight.spec.has_zero_points ? "" : "no"));
    }
    const std::int64_t group_size =
        scheme->group_size == 0 ? weight.spec.cols : std::min(weight.spec.cols, scheme->group_size);
    if (weight.spec.group_size != group_size) {
      return differs(fmt::format("holds groups of {}, group_size says {}", weight.spec.group_size,
                                 group_size));
    }
    if (!scheme->is_fp8 && !weight.stored_as.starts_with(scheme->format)) {
      return differs(fmt::format("is {}, format says {}", weight.stored_as, scheme->format));
    }
  }
  return {};
}

Result<WeightSpec> HuggingFaceCheckpoint::SpecOf(const ExpectedWeight& wanted, Parts& parts) const {
  const auto corrupt = [&](const std::string& what) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: tensor {}: {}", path_.string(), wanted.name, what));
  };
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
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{}: tensor {} is {} without scales", path_.string(), wanted.name,
                              Name(entry.dtype)));
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
    const CompressedTensorsScheme* scheme = SchemeOf(wanted.name);
    spec.bits = scheme != nullptr && !scheme->is_fp8           ? scheme->bits
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
  const CompressedTensorsScheme* declared = SchemeOf(wanted.name);
  spec.has_one_scale = declared != nullptr && declared->has_one_scale && scale.shape.rank() <= 2 &&
                       scale.shape.num_elements() == 1 && !parts.zero_point;
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

Result<WeightSpec> HuggingFaceCheckpoint::Fp8SpecOf(const ExpectedWeight& wanted,
                                                    const Parts& parts) const {
  const SafetensorsEntry& codes = *parts.plain->entry;
  const SafetensorsEntry& scale = *parts.scale->entry;
  const auto corrupt = [&](const char* which, const SafetensorsEntry& found,
                           const std::string& expected) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: tensor {}: {} is {} {}, expected {}", path_.string(), wanted.name,
                            which, Name(found.dtype), found.shape.ToString(), expected));
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
Result<WeightSpec> HuggingFaceCheckpoint::Fp4SpecOf(const ExpectedWeight& wanted,
                                                    const Parts& parts) const {
  const std::int64_t group = SchemeOf(wanted.name)->group_size;
  const bool nv = group == 16;
  const auto corrupt = [&](const std::string& what) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: tensor {}: {}", path_.string(), wanted.name, what));
  };
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

Result<void> HuggingFaceCheckpoint::MapWeights() {
  std::set<std::string> used;
  for (const ExpectedWeight& wanted : ExpectedWeights(config_)) {
    Parts parts;
    const auto take = [&](const std::string& name, std::optional<Located>& target) {
      if (const auto found = tensors_.find(name); found != tensors_.end()) {
        target = found->second;
        used.insert(name);
      }
    };
    if (layout_) {
      NIBBLE_TRY(stored, layout_->Find(wanted, tensors_, used));
      if (stored) {
        const StoredWeight& found = *stored;
        parts.stored = std::move(stored);
        AddWeight(wanted, found.spec(), found.stored_as(), std::move(parts));
        continue;
      }
    }
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
      return Fail(ErrorCode::kNotFound,
                  fmt::format("{}: tensor {} is missing", path_.string(), wanted.name));
    }
    if (parts.plain && parts.packed) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: tensor {} is there twice, plain and packed", path_.string(),
                              wanted.name));
    }
    const bool fp8 = wanted.is_linear && parts.plain && parts.scale &&
                     parts.plain->entry->dtype == DType::kF8E4M3;
    const CompressedTensorsScheme* scheme = SchemeOf(wanted.name);
    const bool fp4 = parts.packed && scheme != nullptr && scheme->is_fp4;
    NIBBLE_TRY(spec, fp8   ? Fp8SpecOf(wanted, parts)
                     : fp4 ? Fp4SpecOf(wanted, parts)
                           : SpecOf(wanted, parts));
    const std::string stored_as = fp8            ? std::string("fp8 e4m3")
                                  : fp4          ? scheme->format
                                  : parts.packed ? fmt::format("pack-quantized int{}", spec.bits)
                                  : parts.scale  ? std::string("int-quantized int8")
                                                 : std::string(Name(parts.plain->entry->dtype));
    AddWeight(wanted, spec, stored_as, std::move(parts));
  }
  NIBBLE_TRY(
      kv_scales,
      ReadKvScales(
          config_, quantization_config_ ? quantization_config_->Find("kv_cache_scheme") : nullptr,
          [&](const std::string& name) -> std::optional<TensorView> {
            const auto found = tensors_.find(name);
            if (found == tensors_.end()) {
              return std::nullopt;
            }
            used.insert(name);
            return found->second.view();
          },
          path_.string(), warnings_));
  kv_scales_ = std::move(kv_scales);
  for (const auto& [name, located] : tensors_) {
    const bool harmless = name.ends_with("rotary_emb.inv_freq") ||
                          (name == "lm_head.weight" && config_.tie_word_embeddings);
    if (!used.contains(name) && !harmless) {
      warnings_.push_back(fmt::format("{}: tensor {} is not used by this architecture",
                                      path_.string(), Quote(name)));
    }
  }
  return CheckDeclared();
}

void HuggingFaceCheckpoint::AddWeight(const ExpectedWeight& wanted, const WeightSpec& spec,
                                      const std::string& stored_as, Parts parts) {
  WeightInfo info{.name = wanted.name, .spec = spec, .stored_as = stored_as};
  const std::vector<Located> all = parts.All();
  const Located& main = parts.packed ? *parts.packed : all.front();
  info.file = main.file->file().path().filename().string();
  for (const Located& part : all) {
    info.size_bytes += part.entry->end - part.entry->begin;
  }
  parts_[wanted.name] = std::move(parts);
  weights_.push_back(std::move(info));
}

Result<std::vector<std::span<const std::byte>>> HuggingFaceCheckpoint::RawParts(
    const WeightInfo& weight) const {
  std::vector<std::span<const std::byte>> out;
  for (const Located& part : parts_.at(weight.name).All()) {
    out.push_back(part.view().bytes);
  }
  return out;
}

void HuggingFaceCheckpoint::Release(const WeightInfo& weight) const {
  for (const Located& part : parts_.at(weight.name).All()) {
    part.file->file().Release(part.view().bytes);
  }
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

Result<QuantizedTensor> HuggingFaceCheckpoint::ReadRows(const WeightInfo& weight,
                                                        std::int64_t row_begin,
                                                        std::int64_t row_end) const {
  const Parts& parts = parts_.at(weight.name);
  const std::int64_t rows = row_end - row_begin;
  NIBBLE_CHECK(row_begin >= 0 && row_end <= weight.spec.rows && rows >= 0,
               "rows outside the weight");
  QuantizedTensor out;
  out.spec = weight.spec;
  out.spec.rows = rows;
  NIBBLE_TRY_VOID(GuardMappedReads(At(weight.file), [&]() -> Result<void> {
    if (parts.stored) {
      return parts.stored->Read(row_begin, row_end, out);
    }
    // Row r of a row-major tensor of `width` elements.
    const auto slice = [&](const TensorView& view, std::int64_t width) {
      const std::size_t row_bytes = static_cast<std::size_t>(width) * SizeBytes(view.dtype);
      return view.bytes.subspan(static_cast<std::size_t>(row_begin) * row_bytes,
                                static_cast<std::size_t>(rows) * row_bytes);
    };
    if (weight.spec.kind == CodecKind::kFloat) {
      NIBBLE_TRY(values, WidenFloats(weight.spec.float_dtype,
                                     slice(parts.plain->view(), weight.spec.cols)));
      out.values = std::move(values);
      return {};
    }
    if (weight.spec.codebook == Codebook::kFp8E4M3) {
      return ReadFp8(parts, weight.spec, row_begin, row_end, out);
    }
    if (weight.spec.codebook == Codebook::kE2M1) {
      return ReadFp4(parts, weight.spec, row_begin, row_end, out);
    }
    const std::int64_t groups = weight.spec.num_groups();
    if (parts.packed) {
      UnpackRows(parts.packed->view(), parts.whole_codes, weight.spec.bits, weight.spec.cols,
                 row_begin, row_end, out.codes);
    } else {
      const auto codes = slice(parts.plain->view(), weight.spec.cols);
      out.codes.resize(codes.size());
      std::ranges::transform(codes, out.codes.begin(), [](std::byte code) {
        return static_cast<std::uint8_t>(static_cast<std::uint8_t>(code) ^ 0x80U);
      });
    }
    const TensorView scale = parts.scale->view();
    if (weight.spec.has_one_scale) {
      NIBBLE_TRY(one, WidenFloats(scale.dtype, scale.bytes));
      out.scales.assign(static_cast<std::size_t>(rows), one.front());
      return {};
    }
    NIBBLE_TRY(scales, WidenFloats(scale.dtype, slice(scale, groups)));
    out.scales = std::move(scales);
    if (parts.zero_point && parts.packed) {
      // Packed along the rows.
      const TensorView zero = parts.zero_point->view();
      const int bits = weight.spec.bits;
      const std::int64_t per_word = 32 / bits;
      for (std::int64_t row = row_begin; row < row_end; ++row) {
        // Where words hold whole codes, code `row` is code row % per_word of its word.
        const std::int64_t word = parts.whole_codes ? row / per_word : 0;
        const std::int64_t index = parts.whole_codes ? row % per_word : row;
        for (std::int64_t group = 0; group < groups; ++group) {
          out.zero_points.push_back(static_cast<std::uint8_t>(
              CodeAt(zero.bytes.data() + (word * groups + group) * 4, groups, bits, index)));
        }
      }
    } else if (parts.zero_point) {
      for (const std::byte zero : slice(parts.zero_point->view(), groups)) {
        out.zero_points.push_back(
            static_cast<std::uint8_t>(static_cast<std::uint8_t>(zero) ^ 0x80U));
      }
    }
    return {};
  }));
  for (const Located& part : parts.All()) {
    NIBBLE_TRY_VOID(part.file->file().CheckUnchanged());
  }
  NIBBLE_TRY_VOID(CheckFinite(out, At(weight.file), weight.name));
  return out;
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenHuggingFaceFolder(const fs::path& folder) {
  auto checkpoint = std::make_unique<HuggingFaceCheckpoint>();
  NIBBLE_TRY_VOID(checkpoint->Open(folder));
  return checkpoint;
}

}  // namespace nibble
