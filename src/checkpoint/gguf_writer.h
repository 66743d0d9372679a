#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/gguf_vocabulary.h"
#include "base/result.h"
#include "checkpoint/model_config.h"
#include "checkpoint/weight_writer.h"
#include "io/atomic_writer.h"

namespace nibble {

/// What a GGUF file says beside its weights.
struct GgufModelFacts {
  std::string name;  // general.name
  ModelConfig config;
  GgufVocabulary vocabulary;
  std::optional<std::string> chat_template;
};

/// Writes one GGUF file, `file_name` of `out`, through the interface of WeightWriter: weights in
/// the order given, each of a spec that GgufTypeOf knows; vectors are written as F32. Rows of q and
/// k go to their interleaved places. Memory: the blocks of one weight. out must outlive the writer.
/// Errors: kInvalidArgument naming the weight whose spec or width no type of GGUF holds;
/// kUnsupported for a model that GGUF's metadata cannot describe.
Result<std::unique_ptr<WeightWriter>> CreateGgufWriter(AtomicWriter& out,
                                                       const std::string& file_name,
                                                       std::vector<WeightToWrite> weights,
                                                       const GgufModelFacts& facts);

/// Bytes before the tensors of such a file, its metadata and vocabulary: as many for any types of
/// the same weights. Errors: those of CreateGgufWriter.
Result<std::uint64_t> GgufHeaderBytes(const std::vector<WeightToWrite>& weights,
                                      const GgufModelFacts& facts);
/// Bytes that its tensors take.
std::uint64_t GgufSizeBytes(const std::vector<WeightToWrite>& weights);

}  // namespace nibble
