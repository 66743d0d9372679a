#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "compress/budget.h"
#include "compress/calibration.h"
#include "compress/certificate.h"
#include "compress/model_format.h"
#include "compress/quantize_method.h"
#include "compress/recipe.h"
#include "compress/scheme.h"
#include "device/device.h"
#include "json/value.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

struct QuantizeOptions {
  DeviceKind device = DeviceKind::kCpu;  // where blocks are walked and solved (CheckDevice)
  QuantizeMethod method = QuantizeMethod::kAuto;
  const CalibrationSet* calibration = nullptr;  // kGptq needs it; must outlive the run
  double damping = 0.01;                        // kGptq: of the mean of a Hessian's diagonal
  double smooth_alpha = 0.5;  // kSmoothQuant: 0 leaves activations alone, 1 gives weights all of it
  bool correct_inputs = true;             // kGptq: make up for what the input has lost
  std::int64_t truth_tokens = 16384;      // kGptq: compared with the source's, at most
  std::int64_t learn_iterations = 200;    // kLearned: steps of a block, 1 or more
  std::int64_t learn_batch_tokens = 512;  // kLearned: of a step, in whole windows
  Scheme scheme;                          // of every linear
  std::optional<Recipe> recipe;           // or of some, and other schemes for others; scheme says
                                          // nothing then
  std::optional<Budget> budget;           // search such a recipe; needs calibration data
  std::vector<Scheme> candidates;         // of that search; empty: UsualCandidates
  std::optional<ModelFormat> format;   // absent: that of the first quantized weight (UsualFormat)
  bool search_scale = true;            // off: plain absmax
  bool allow_requantize = false;       // of a folder whose linears are quantized already
  std::vector<TokenText> evaluations;  // further texts that the certificate measures
  std::string text;                    // what the certificate is measured on
  std::string text_name;
  std::int64_t text_context = 512;  // tokens of a window; shortened for a short text
  std::int64_t max_windows = 16;
  std::uint64_t shard_bytes = std::uint64_t{2} << 30;
  std::function<void(const std::string&)> notice;  // told, before the work, what it will take
};

/// What is going on, for progress lines. Return false to stop; the partial folder stays and can be
/// resumed.
using QuantizeProgress = std::function<bool(std::string_view phase, std::uint64_t done,
                                            std::uint64_t total, const std::string& detail)>;

struct QuantizeSummary {
  Certificate certificate;
  json::Value log;  // scales, zero points and errors, tensor by tensor: quantization_log.json
  std::uint64_t source_bytes = 0;
  std::uint64_t output_bytes = 0;
  double bits_per_weight = 0.0;  // of the linears, scales included
  std::string method_reason;     // why this method
};

/// Quantizes every linear of the decoder blocks, block by block, and writes a folder in the format
/// that the options name, with config, tokenizer, template, log and certificate (GGUF: model.gguf
/// with log and certificate beside it). Atomic and resumable: nothing appears under `out` before
/// the certificate is measured, and a second run takes finished blocks and shards over; the
/// certificate is measured on the CPU. Memory: one
/// tensor's codes and a chunk of rows a worker, or with calibration data what BlockSolver::Plan
/// says; then, for the certificate, what EvaluateBlockwise takes. Errors: kInvalidArgument (`out`
/// exists; a group that does not divide a width, naming the tensor; no calibration data),
/// kOutOfMemory, kCancelled, and what reading and writing give.
Result<QuantizeSummary> QuantizeCheckpoint(const Checkpoint& source, const Tokenizer& tokenizer,
                                           const std::filesystem::path& out,
                                           const QuantizeOptions& options, int num_threads,
                                           const QuantizeProgress& progress);

/// The text that certificates are measured on where the user names none: general English prose of
/// our own.
std::string_view DefaultCertificateText();

}  // namespace nibble
