// A Hugging Face folder: its side files, which tensors it has, and whether they are what its
// quantization_config says. How weights lie in tensors: tensor_weight.h, stored_weight.h.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/limits.h"
#include "base/text.h"
#include "checkpoint/checkpoint_base.h"
#include "checkpoint/compressed_tensors_scheme.h"
#include "checkpoint/kv_scales.h"
#include "checkpoint/nibble_layout.h"
#include "checkpoint/stored_weight.h"
#include "checkpoint/tensor_weight.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeightSuffix = ".weight";

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
  Result<void> CheckDeclared();
  Result<void> CheckCodebook(Codebook codebook) const;
  Result<void> CheckLayout() const;
  const CompressedTensorsScheme* SchemeOf(const std::string& weight) const;
  std::string At(std::string_view file) const { return (path_ / file).string(); }

  std::string quantization_source_ = "config.json";  // the file that quantization_config is from
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  TensorMap tensors_;
  std::unique_ptr<WeightLayout> layout_;  // of quantization_config's method, where it has one
  std::optional<CompressedTensorsRules> rules_;                  // of compressed-tensors
  std::map<std::string, std::unique_ptr<StoredWeight>> stored_;  // by canonical name
  std::set<std::string> in_layout_;                              // those that layout_ found
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
    const bool stored = in_layout_.contains(weight.name);
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

Result<void> HuggingFaceCheckpoint::MapWeights() {
  std::set<std::string> used;
  for (const ExpectedWeight& wanted : ExpectedWeights(config_)) {
    std::unique_ptr<StoredWeight> weight;
    if (layout_) {
      NIBBLE_TRY(found, layout_->Find(wanted, tensors_, used));
      weight = std::move(found);
    }
    if (weight) {
      in_layout_.insert(wanted.name);
    } else {
      NIBBLE_TRY(found,
                 FindTensorWeight(wanted, SchemeOf(wanted.name), tensors_, path_.string(), used));
      weight = std::move(found);
    }
    WeightInfo info{.name = wanted.name, .spec = weight->spec(), .stored_as = weight->stored_as()};
    info.file = weight->parts().front().file->file().path().filename().string();
    for (const Located& part : weight->parts()) {
      info.size_bytes += part.entry->end - part.entry->begin;
    }
    weights_.push_back(std::move(info));
    stored_.emplace(wanted.name, std::move(weight));
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

Result<std::vector<std::span<const std::byte>>> HuggingFaceCheckpoint::RawParts(
    const WeightInfo& weight) const {
  std::vector<std::span<const std::byte>> out;
  for (const Located& part : stored_.at(weight.name)->parts()) {
    out.push_back(part.view().bytes);
  }
  return out;
}

void HuggingFaceCheckpoint::Release(const WeightInfo& weight) const {
  for (const Located& part : stored_.at(weight.name)->parts()) {
    part.file->file().Release(part.view().bytes);
  }
}

Result<QuantizedTensor> HuggingFaceCheckpoint::ReadRows(const WeightInfo& weight,
                                                        std::int64_t row_begin,
                                                        std::int64_t row_end) const {
  const StoredWeight& stored = *stored_.at(weight.name);
  NIBBLE_CHECK(row_begin >= 0 && row_end <= weight.spec.rows && row_begin <= row_end,
               "rows outside the weight");
  QuantizedTensor out;
  out.spec = weight.spec;
  out.spec.rows = row_end - row_begin;
  NIBBLE_TRY_VOID(GuardMappedReads(
      At(weight.file), [&]() -> Result<void> { return stored.Read(row_begin, row_end, out); }));
  for (const Located& part : stored.parts()) {
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
