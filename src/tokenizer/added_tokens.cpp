#include "tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

bool EndsWithWord(std::string_view text) {
  return !text.empty() &&
         (ClassOf(DecodeAt(text, PreviousStart(text, text.size())).value) & kWord) != 0;
}

bool StartsWithWord(std::string_view text) {
  return !text.empty() && (ClassOf(DecodeAt(text, 0).value) & kWord) != 0;
}

/// Start of the white space that `text` ends with.
std::size_t TrailingSpace(std::string_view text) {
  std::size_t at = text.size();
  while (at > 0) {
    const std::size_t previous = PreviousStart(text, at);
    if ((ClassOf(DecodeAt(text, previous).value) & kSpace) == 0) {
      break;
    }
    at = previous;
  }
  return at;
}

/// Bytes of white space that `text` starts with.
std::size_t LeadingSpace(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const CodePoint c = DecodeAt(text, at);
    if ((ClassOf(c.value) & kSpace) == 0) {
      break;
    }
    at += c.size;
  }
  return at;
}

}  // namespace

Trie::Trie(std::vector<std::pair<std::string, std::size_t>> strings) {
  std::erase_if(strings, [](const auto& s) { return s.first.empty(); });
  std::stable_sort(strings.begin(), strings.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  // Node by node: the strings of [begin, end) agree in their first `depth` bytes.
  struct Range {
    std::size_t begin;
    std::size_t end;
    std::size_t depth;
  };
  std::vector<Range> ranges = {{0, strings.size(), 0}};
  nodes_.emplace_back();
  for (std::size_t node = 0; node < ranges.size(); ++node) {
    Range range = ranges[node];
    while (range.begin < range.end && strings[range.begin].first.size() == range.depth) {
      if (nodes_[node].value == kNoValue) {
        nodes_[node].value = strings[range.begin].second;
      }
      ++range.begin;
    }
    nodes_[node].first_edge = static_cast<std::uint32_t>(edges_.size());
    while (range.begin < range.end) {
      const char byte = strings[range.begin].first[range.depth];
      std::size_t end = range.begin + 1;
      while (end < range.end && strings[end].first[range.depth] == byte) {
        ++end;
      }
      edges_.push_back(
          {static_cast<unsigned char>(byte), static_cast<std::uint32_t>(nodes_.size())});
      nodes_.emplace_back();
      ranges.push_back({range.begin, end, range.depth + 1});
      ++nodes_[node].num_edges;
      range.begin = end;
    }
  }
  for (std::uint32_t i = 0; i < nodes_[0].num_edges; ++i) {
    roots_[edges_[i].byte] = edges_[i].node;
  }
}

Trie::Match Trie::Find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    std::uint32_t node = roots_[static_cast<unsigned char>(text[begin])];
    if (node == 0) {
      continue;
    }
    Match best{std::string_view::npos, 0, 0};
    for (std::size_t at = begin + 1;; ++at) {
      if (nodes_[node].value != kNoValue) {
        best = {begin, at, nodes_[node].value};
      }
      if (at == text.size()) {
        break;
      }
      const auto byte = static_cast<unsigned char>(text[at]);
      const auto first = edges_.begin() + nodes_[node].first_edge;
      const auto last = first + nodes_[node].num_edges;
      const auto edge = std::lower_bound(first, last, byte,
                                         [](const Edge& e, unsigned char b) { return e.byte < b; });
      if (edge == last || edge->byte != byte) {
        break;
      }
      node = edge->node;
    }
    if (best.begin != std::string_view::npos) {
      return best;
    }
  }
  return {std::string_view::npos, 0, 0};
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::vector<std::pair<std::string, std::size_t>> strings;
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    strings.emplace_back(tokens_[i].pattern, i);
  }
  trie_ = Trie(std::move(strings));
}

void AddedTokenFinder::Cut(std::string_view text, bool with_special,
                           std::vector<Section>& sections) const {
  std::size_t done = 0;
  if (!tokens_.empty()) {
    std::size_t from = 0;
    while (true) {
      const Trie::Match match = trie_.Find(text, from);
      if (match.begin == std::string_view::npos) {
        break;
      }
      from = match.end;
      const AddedToken& token = tokens_[match.value];
      std::size_t begin = match.begin;
      std::size_t end = match.end;
      if (token.special && !with_special) {
        continue;
      }
      if (token.single_word &&
          (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
        continue;
      }
      if (token.lstrip) {
        begin = done + TrailingSpace(text.substr(done, begin - std::min(begin, done)));
      }
      if (token.rstrip) {
        end += LeadingSpace(text.substr(end));
      }
      begin = std::max(begin, done);  // the token before may have taken the space
      if (begin > done) {
        sections.push_back({{done, begin}, -1});
      }
      sections.push_back({{begin, std::max(begin, end)}, token.id});
      done = std::max(done, end);
    }
  }
  if (done < text.size()) {
    sections.push_back({{done, text.size()}, -1});
  }
}

}  // namespace nibble::text
