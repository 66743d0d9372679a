#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "json/value.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

struct CalibrationOptions {
  std::int64_t num_samples = 128;
  std::int64_t length = 512;  // tokens of a sample
  std::uint64_t seed = 0;     // which samples
};

/// Token windows that stand for what a model will see.
struct CalibrationSet {
  std::int64_t length = 0;
  std::vector<TokenId> tokens;  // [num_windows * length]
  json::Object identity;        // what they are: file, hashes, counts, seed; goes into certificates
  std::filesystem::path rows_folder;  // where all tokens' activations lie, in a file for the time
                                      // of the run; empty: in memory

  std::int64_t num_windows() const {
    return length == 0 ? 0 : static_cast<std::int64_t>(tokens.size()) / length;
  }
  std::span<const TokenId> Window(std::int64_t i) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(i * length),
                                     static_cast<std::size_t>(length));
  }
};

/// A text to measure on, as the model reads it.
struct TokenText {
  std::string name, sha256;  // of the file's bytes
  std::vector<TokenId> tokens;
};

/// Reads a text of the same kinds as LoadCalibration does, all of it. Errors: as that.
Result<TokenText> LoadText(const std::filesystem::path& file, const std::string& name,
                           const Checkpoint& model, const Tokenizer& tokenizer);

/// Reads calibration data. A file named .jsonl holds a JSON object a line:
///   {"text": ...}                                      as it stands, with the special tokens of
///   the
///                                                      tokenizer around it
///   {"messages": [{"role": ..., "content": ...}, ...]} through the model's chat template
///   {"conversations": [{"from": "human", "value": ...}, ...]}    the same, in ShareGPT's words
///   {"prompt": ..., "completion": ...}                 the same, one turn; the answer may be
///   absent
/// Any other file is one text without special tokens. The tokens of all rows are joined and cut
/// into windows of options.length; num_samples of them, chosen by the seed, are kept in file order
/// (all, if there are fewer). A template that asks for the date gets 2025-01-01. Errors:
/// kInvalidArgument naming file and line; what reading and rendering give.
Result<CalibrationSet> LoadCalibration(const std::filesystem::path& file, const Checkpoint& model,
                                       const Tokenizer& tokenizer,
                                       const CalibrationOptions& options);

}  // namespace nibble
