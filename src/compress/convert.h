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
#include "compress/model_format.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

struct ConvertOptions {
  ModelFormat to = ModelFormat::kCompressedTensors;
  // What float tensors (tables, norms, biases, and every weight of kSafetensors) are rounded to.
  // Absent: nothing is rounded, each is stored in 16 bits where they hold it, else in F32.
  std::optional<DType> float_dtype;
  std::uint64_t shard_bytes = std::uint64_t{2} << 30;
};

/// What will become of a model: every weight keeps its value, bit for bit.
struct Conversion {
  std::vector<WeightToWrite> weights;  // in the model's order
  DType scale_dtype = DType::kF16;     // of the quantized ones
  DType model_dtype = DType::kF16;     // what config.json says
  struct Step {
    std::string from, to;  // "gptq int4", "w4 g32 sym"
    std::int64_t count = 0;
  };
  std::vector<Step> steps;  // in the order of first use
  std::vector<std::string> notes;
  std::uint64_t size_bytes = 0;
};

/// Told what goes on; return false to stop.
using ConvertProgress = std::function<bool(std::string_view phase, std::uint64_t done,
                                           std::uint64_t total, const std::string& detail)>;

/// Reads the whole source and finds, for each weight, the smallest form of the target that holds it
/// without loss. Errors: kInvalidArgument naming the weight, why it cannot be held and what to do;
/// kUnsupported if GGUF has no place for the config or tokenizer; kCancelled.
Result<Conversion> PlanConversion(const Checkpoint& source, const Tokenizer& tokenizer,
                                  const ConvertOptions& options, int num_threads,
                                  const ConvertProgress& progress);

/// Writes a planned conversion: a folder, or for kGguf one file. Atomic and resumable as
/// QuantizeCheckpoint is; tokenizer, template and generation defaults come along.
Result<void> WriteConversion(const Checkpoint& source, const Tokenizer& tokenizer,
                             const Conversion& conversion, const std::filesystem::path& out,
                             const ConvertOptions& options, const ConvertProgress& progress);

}  // namespace nibble
