#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/gguf_vocabulary.h"
#include "base/result.h"
#include "checkpoint/model_config.h"
#include "codec/quantized_tensor.h"
#include "json/value.h"

namespace nibble {

enum class CheckpointFormat : std::uint8_t { kSafetensors, kGguf };

/// The name of a GGUF file that fills a folder of its own, with what belongs to it beside it.
inline constexpr const char* kGgufFileName = "model.gguf";

/// One weight under its canonical Hugging Face module name, e.g.
/// "model.layers.0.self_attn.q_proj.weight" (or ".bias"). Quantized layouts of several tensors
/// (weight_packed, weight_scale, ...) are one entry.
struct WeightInfo {
  std::string name;
  WeightSpec spec;        // vectors have rows = 1
  std::string stored_as;  // the layout's own word: "F32", "Q4_1", "pack-quantized int4", for tables
  std::uint64_t size_bytes = 0;  // on disk, all parts together
  std::string file;              // file name inside the checkpoint
};

/// Defaults of generation_config.json that the server and `run` apply.
struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int64_t> top_k, max_new_tokens;
  std::optional<bool> do_sample;
  std::vector<TokenId> eos_token_ids;  // extends the config's
};

/// A model on disk, mapped and checked, in any layout that nibble reads. Immutable; safe to read
/// from several threads.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  /// path: a folder (config.json + *.safetensors, or model.gguf), a .gguf file, or a name in the
  /// Hugging Face hub cache
  /// ("org/name[@revision]", looked up below `hub_cache`). Structure is checked strictly: every
  /// tensor that the config asks for exists once with the right shape, and none is left over
  /// without being named in `warnings`. Errors name the file, tensor or key, what was found and
  /// what was expected.
  static Result<std::unique_ptr<Checkpoint>> Open(const std::string& path,
                                                  const std::filesystem::path& hub_cache = {});

  virtual CheckpointFormat format() const = 0;
  virtual const std::filesystem::path& path() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual std::span<const WeightInfo> weights() const = 0;
  const WeightInfo* Find(std::string_view name) const;

  /// Rows [row_begin, row_end) of a weight in canonical form. GGUF q/k rows come un-permuted. Reads
  /// straight from the mapping; a damaged or truncated mapping is an Error, not a signal.
  virtual Result<QuantizedTensor> ReadRows(const WeightInfo& weight, std::int64_t row_begin,
                                           std::int64_t row_end) const = 0;
  /// The bytes on disk that make up the weight, part by part in a fixed order: what the certificate
  /// hashes.
  virtual Result<std::vector<std::span<const std::byte>>> RawParts(
      const WeightInfo& weight) const = 0;
  /// Tells the kernel that the pages of this weight are not needed again.
  virtual void Release(const WeightInfo& weight) const = 0;

  /// What numbers of an fp8 KV cache are multiplied by, [num_layers][2][num_kv_heads] (keys,
  /// values); empty if the checkpoint says nothing, which means 1.
  virtual std::span<const float> kv_scales() const = 0;

  /// tokenizer.json's text (folder), or the vocabulary inside a GGUF; exactly one of the two, or
  /// neither.
  virtual const std::optional<std::string>& tokenizer_json() const = 0;
  virtual const std::optional<GgufVocabulary>& gguf_vocabulary() const = 0;
  /// The template's source, if the checkpoint has one (chat_template.jinja, tokenizer_config.json,
  /// GGUF key).
  virtual const std::optional<std::string>& chat_template() const = 0;
  /// bos_token / eos_token strings from tokenizer_config.json, for templates; empty if unknown.
  virtual const std::string& bos_token() const = 0;
  virtual const std::string& eos_token() const = 0;
  virtual const GenerationDefaults& generation() const = 0;
  /// generation_config.json as it stands, to be copied along.
  virtual const std::optional<std::string>& generation_config_json() const = 0;
  /// tokenizer_config.json as it stands, to be copied along.
  virtual const std::optional<std::string>& tokenizer_config_json() const = 0;
  /// nibble_certificate.json, parsed; absent for foreign checkpoints.
  virtual const std::optional<json::Value>& certificate() const = 0;
  /// quantization_config of config.json, if any.
  virtual const std::optional<json::Value>& quantization_config() const = 0;
  /// Things worth telling the user that did not stop the load.
  virtual std::span<const std::string> warnings() const = 0;
};

/// The canonical names and shapes that a config asks for, in model order; used to check and to
/// plan.
struct ExpectedWeight {
  std::string name;
  std::int64_t rows = 0;  // 1 for vectors
  std::int64_t cols = 0;
  bool is_linear = false;  // a quantizable matrix of a decoder block
};
std::vector<ExpectedWeight> ExpectedWeights(const ModelConfig& config);

/// "org/name[@revision]" -> the snapshot folder in the hub cache. Errors: kNotFound with the
/// command that downloads it, kCorruptFile for an incomplete snapshot.
Result<std::filesystem::path> FindInHubCache(const std::string& name,
                                             const std::filesystem::path& hub_cache);

}  // namespace nibble
