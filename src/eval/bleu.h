#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// sacrebleu's tokenizers that need no model: 13a (mteval-v13a, WMT's), zh (Chinese characters one
/// by one, the rest as 13a), char.
enum class BleuTokenizer { k13a, kZh, kChar };
const char* Name(BleuTokenizer tokenizer);

std::vector<std::string> TokenizeForBleu(std::string_view text, BleuTokenizer tokenizer);

/// What BLEU is made of, for one sentence or added up over a corpus.
struct BleuCounts {
  static constexpr std::size_t kOrders = 4;
  std::int64_t hypothesis_tokens = 0;
  std::int64_t reference_tokens = 0;  // of the reference whose length is nearest
  std::array<std::int64_t, kOrders> matches{};
  std::array<std::int64_t, kOrders> ngrams{};  // of the hypothesis
  BleuCounts& operator+=(const BleuCounts& other);
};
BleuCounts CountBleu(std::string_view hypothesis, std::span<const std::string> references,
                     BleuTokenizer tokenizer);

/// Corpus BLEU (Papineni et al. 2002), 0 to 100, with "exp" smoothing of orders without a match:
/// sacrebleu's corpus_bleu with its defaults.
double Bleu(const BleuCounts& counts);

}  // namespace nibble
