#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "engine/model_runner.h"
#include "eval/perplexity.h"
#include "json/value.h"

namespace nibble {

/// What quantization cost, measured, and what the files must be: nibble_certificate.json beside the
/// weights. `serve` and `run` check it and refuse a checkpoint that drifted. Layout:
/// docs/formats/certificate.md.
struct Certificate {
  struct ModeQuality {
    double perplexity = 0.0, kl_mean = 0.0, kl_stderr = 0.0, kl_p99 = 0.0, top1 = 0.0;
  };
  struct GoldenLogits {
    std::string sha256;  // over the fp32 logits of the prompt's last position, little endian
    std::vector<std::pair<TokenId, float>> top;  // the five largest, for people
  };

  /// Against the source, on one text.
  struct TextQuality {
    std::string name, sha256;
    std::int64_t tokens = 0, context = 0;
    double source_perplexity = 0.0;
    ModeQuality int16, int8;
  };

  json::Value source;  // name, format, digests of what was quantized
  json::Value recipe;  // scheme, group size, symmetry, search
  std::string text_name, text_sha256;
  std::int64_t text_tokens = 0, text_context = 0;
  double source_perplexity = 0.0;
  ModeQuality int16, int8;
  std::vector<TextQuality> evaluations;  // of the texts that the user named
  json::Value calibration_match;         // how near the calibration data is to the texts, or null
  std::string tables_stored, tables_served;  // embedding and head: "f16", "w8 g32 sym"
  std::vector<TokenId> golden_prompt;
  GoldenLogits golden_int16, golden_int8;
  std::map<std::string, std::string> tensors;  // canonical weight name -> SHA-256 of its parts
  std::map<std::string, std::string> files;    // file name -> FileHash

  /// What `--activations auto` takes: int8 where the KL it adds is below 5 % of what the weights
  /// cost anyway.
  ActivationMode auto_activations() const;
};

inline constexpr const char* kCertificateFile = "nibble_certificate.json";
/// Member of config.json that promises the certificate, so that taking it away is noticed.
inline constexpr const char* kCertificateKey = "nibble_certificate";

/// The file's text. Its last member is a SHA-256 of everything before it.
std::string ToJson(const Certificate& certificate);

/// Reads the text back and checks its own hash. Errors: kCorruptFile.
Result<Certificate> ParseCertificate(std::string_view text, const std::string& source);

/// Where the certificate of a model lies: in its folder, or beside a model.gguf.
std::filesystem::path CertificateFolder(const std::filesystem::path& model);
/// The certificate of a folder, if it has one. Where config.json promises one it must be there.
/// Errors: kCorruptFile naming the file.
Result<std::optional<Certificate>> ReadCertificate(const std::filesystem::path& folder);
/// Compares a file with the hash that its certificate has of it (FileHash). Errors: kCorruptFile
/// naming the file, and what reading it gives.
Result<void> CheckFile(const std::filesystem::path& folder, const std::string& name,
                       const std::string& expected);
/// Reads a checkpoint's certificate, if it has one, and checks every file and header against it
/// (tensors are checked while they are packed). Errors: those of the above.
Result<std::optional<Certificate>> LoadCertificate(const Checkpoint& checkpoint);

/// How far a card's logits may lie from those that a CPU recorded, as a share of the largest logit:
/// docs/formats/certificate.md argues the number.
inline constexpr float kGoldenTolerance = 0.02F;

struct GoldenReplay {
  float difference = 0.0F;            // the largest, as a share of the largest logit; on a CPU 0
  KvDType kv_dtype = KvDType::kBF16;  // of the cache that it ran through
};
/// Runs the golden prompt and compares the logits: on a CPU bit for bit, in the runner's activation
/// mode, through a bf16 cache as when the certificate was written; on a card within
/// kGoldenTolerance of those of int16, through the user's cache if it has 16 bits, else through a
/// float16 one. What is tested is the weights and the kernels, not a cache that rounds.
/// Errors: kCorruptFile saying what differs.
Result<GoldenReplay> ReplayGoldenLogits(const Certificate& certificate, ModelRunner& runner);
/// What a certificate says of one row of logits.
Certificate::GoldenLogits DescribeGoldenLogits(std::span<const float> logits);
/// How far a row of logits is from a recorded one: the largest difference of a recorded logit, or
/// of another token above the last recorded one, over the largest recorded magnitude (or the root
/// mean square of the row, if that is more). Errors: kCorruptFile naming the token if it is more
/// than `tolerance`, or if a logit is no number.
Result<float> CompareGoldenLogits(const Certificate::GoldenLogits& expected,
                                  std::span<const float> logits, float tolerance);

/// Hashes for LoadWeights.
ExpectedHashes TensorHashes(const Certificate& certificate);

/// SHA-256 of a weight's parts.
Result<std::string> TensorHash(const Checkpoint& checkpoint, const WeightInfo& weight);
/// The hashes of an opened checkpoint: TensorHash of every weight, FileHash of every file of the
/// folder.
Result<void> HashCheckpoint(const Checkpoint& checkpoint, Certificate& certificate);

}  // namespace nibble
