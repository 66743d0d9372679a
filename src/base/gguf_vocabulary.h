#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"

namespace nibble {

/// The `tokenizer.ggml.*` keys of a GGUF file as plain data: what checkpoint hands to tokenizer.
struct GgufVocabulary {
  std::string model;                // "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), ...
  std::string pre;                  // "smollm", "llama-bpe", ...; empty if the key is absent
  std::vector<std::string> tokens;  // by id
  std::vector<float> scores;        // by id, or empty
  std::vector<std::int32_t>
      token_types;  // by id: 1 normal 2 unknown 3 control 4 user 5 unused 6 byte; or empty
  std::vector<std::string> merges;  // "a b", best first
  std::optional<TokenId> bos, eos, unk, pad;
  std::optional<TokenId> eot;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

}  // namespace nibble
