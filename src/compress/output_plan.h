#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/weight_writer.h"
#include "compress/model_format.h"
#include "compress/quantize.h"
#include "io/atomic_writer.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

/// What a quantization writes: every weight with its grid, and the format that holds them.
struct OutputPlan {
  ModelFormat format = ModelFormat::kCompressedTensors;
  std::vector<WeightToWrite> weights;          // in the model's order
  DType float_dtype = DType::kF16;             // of tables, norms and biases
  DType scale_dtype = DType::kF16;             // scales are rounded to it before codes are chosen
  std::uint64_t header_bytes = 0;              // HeaderBytes, where it was asked for
  std::set<std::string, std::less<>> rounded;  // linears whose method is rounding
};

/// Errors: kInvalidArgument naming the weight that the format cannot hold, and what to do.
Result<OutputPlan> PlanOutput(const Checkpoint& source, const QuantizeOptions& options);

/// What a GGUF file has before its tensors; 0 for other formats. Errors: kUnsupported if GGUF has
/// no place for the model's config or tokenizer.
Result<std::uint64_t> HeaderBytes(const OutputPlan& plan, const Checkpoint& source,
                                  const Tokenizer& tokenizer);

/// Bytes of the weight files, headers included.
std::uint64_t SizeBytes(const OutputPlan& plan, std::uint64_t shard_bytes);
/// Bits that a weight takes on disk, scales included.
std::uint64_t StoredBits(const OutputPlan& plan, const WeightSpec& spec);
/// The same of all matrices of the decoder blocks.
std::uint64_t BitsOfLinears(const OutputPlan& plan);

/// A folder's safetensors, or its model.gguf.
Result<std::unique_ptr<WeightWriter>> CreateWriter(const OutputPlan& plan, const Checkpoint& source,
                                                   const Tokenizer& tokenizer,
                                                   std::uint64_t shard_bytes, AtomicWriter& out);

/// What a folder has besides: config (it promises a certificate), tokenizer and template. A GGUF
/// file has them inside.
Result<void> WriteOutputFiles(const OutputPlan& plan, const Checkpoint& source,
                              const Tokenizer& tokenizer, AtomicWriter& out);

}  // namespace nibble
