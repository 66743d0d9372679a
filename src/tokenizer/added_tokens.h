#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/regex.h"

namespace nibble::text {

/// A token that is looked for in the text itself, before the model sees it.
struct AddedToken {
  std::int32_t id = 0;
  std::string content = {};
  bool special = false;      // control token: hidden from clients' text, skipped on request
  bool normalized = false;   // looked for after normalisation, else before
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool single_word = false;  // only between characters that are not \w
  std::string pattern = {};  // what is looked for: the content, normalised if `normalized`
};

/// Finds the leftmost-longest of many strings. Work a position is bounded by the longest string,
/// not by their number.
class Trie {
 public:
  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::size_t value = 0;
  };

  Trie() = default;
  /// (string, value); of equal strings the first counts, empty ones never match.
  explicit Trie(std::vector<std::pair<std::string, std::size_t>> strings);
  /// The first match at or after `from`; begin == npos if there is none.
  Match Find(std::string_view text, std::size_t from) const;

 private:
  struct Node {
    std::uint32_t first_edge = 0;
    std::uint32_t num_edges = 0;
    std::size_t value = kNoValue;
  };
  struct Edge {
    unsigned char byte = 0;
    std::uint32_t node = 0;
  };
  static constexpr std::size_t kNoValue = ~std::size_t{0};

  std::vector<Node> nodes_;                 // [0] is the root
  std::vector<Edge> edges_;                 // of a node: neighbours, ascending
  std::array<std::uint32_t, 256> roots_{};  // child of the root by byte; 0: none
};

/// A stretch of text: an added token, or text for the model.
struct Section {
  Span span;
  std::int32_t token = -1;  // -1: text
};

/// The added tokens of one kind (normalized or not), ready to cut texts.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);
  /// Cuts text into sections, which cover it but for nothing. with_special: special tokens are
  /// recognised, else they stay text.
  void Cut(std::string_view text, bool with_special, std::vector<Section>& sections) const;
  bool empty() const { return tokens_.empty(); }

 private:
  std::vector<AddedToken> tokens_;
  Trie trie_;
};

}  // namespace nibble::text
