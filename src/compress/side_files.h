#pragma once

#include <string>

#include "base/gguf_vocabulary.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_writer.h"
#include "io/atomic_writer.h"
#include "json/value.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

/// Writes what a folder has besides weights: `config` as config.json, tokenizer, chat template and
/// generation defaults of the source, made where it has none (a GGUF). Files that an earlier run
/// finished stay. Errors: kIo; kUnsupported for a tokenizer that cannot be written.
Result<void> WriteSideFiles(const Checkpoint& source, const Tokenizer& tokenizer,
                            const json::Object& config, AtomicWriter& out);

/// SHA-256 over all that WriteSideFiles and GgufFactsOf take from the source: a run is not resumed
/// on the same weights with another config, tokenizer or template.
std::string SideFilesDigest(const Checkpoint& source);

/// What a GGUF file says besides weights: the source's own vocabulary, or one made of its
/// tokenizer. Errors: kUnsupported for a tokenizer that llama.cpp does not know; kInternal if the
/// vocabulary made of it tokenizes a text of ours in another way.
Result<GgufModelFacts> GgufFactsOf(const Checkpoint& source, const Tokenizer& tokenizer);

}  // namespace nibble
