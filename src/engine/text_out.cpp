#include "engine/text_out.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "tokenizer/tokenizer.h"

namespace nibble {
namespace {

class TokenizerDecoder final : public TextDecoder {
 public:
  TokenizerDecoder(const Tokenizer& tokenizer, bool skip_special)
      : decoder_(tokenizer, {.skip_special = skip_special, .starts_text = false}) {}
  std::string Push(TokenId token) override { return decoder_.Push(token); }
  std::string Finish() override { return decoder_.Finish(); }

 private:
  IncrementalDecoder decoder_;
};

class TokenizerDecoderFactory final : public TextDecoderFactory {
 public:
  explicit TokenizerDecoderFactory(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::unique_ptr<TextDecoder> Start(bool skip_special_tokens) const override {
    return std::make_unique<TokenizerDecoder>(tokenizer_, skip_special_tokens);
  }

 private:
  const Tokenizer& tokenizer_;
};

}  // namespace

std::unique_ptr<TextDecoderFactory> MakeTextDecoderFactory(const Tokenizer& tokenizer) {
  return std::make_unique<TokenizerDecoderFactory>(tokenizer);
}

StopStringMatcher::StopStringMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  for (const std::string& stop : stops_) {
    longest_ = std::max(longest_, stop.size());
  }
}

StopStringMatcher::Piece StopStringMatcher::Push(std::string_view text, bool check) {
  const std::size_t old_size = buffer_.size();
  buffer_ += text;
  Piece piece;
  if (check) {
    std::size_t best_begin = 0;
    std::size_t best_end = std::string::npos;
    for (std::size_t s = 0; s < stops_.size(); ++s) {
      const std::string& stop = stops_[s];
      // A match must end in the new text.
      const std::size_t from = old_size + 1 > stop.size() ? old_size + 1 - stop.size() : 0;
      const std::size_t begin = buffer_.find(stop, from);
      if (begin == std::string::npos) {
        continue;
      }
      const std::size_t end = begin + stop.size();
      if (end < best_end || (end == best_end && begin < best_begin)) {
        best_begin = begin;
        best_end = end;
        piece.matched = static_cast<int>(s);
      }
    }
    if (piece.matched) {
      const std::size_t cut = include_stop_ ? best_end : best_begin;
      // Text of min_tokens' time may have been sent already although a match reaches back into it.
      piece.text = cut > num_sent_ ? buffer_.substr(num_sent_, cut - num_sent_) : std::string();
      buffer_.clear();
      num_sent_ = 0;
      return piece;
    }
  }
  const std::size_t send_end = buffer_.size() - (include_stop_ ? 0 : HeldBack());
  if (send_end > num_sent_) {
    piece.text = buffer_.substr(num_sent_, send_end - num_sent_);
    num_sent_ = send_end;
  }
  // Keep what a later match can still reach.
  const std::size_t keep = std::max(buffer_.size() - num_sent_, longest_ > 0 ? longest_ - 1 : 0);
  if (buffer_.size() > keep) {
    const std::size_t drop = buffer_.size() - keep;
    buffer_.erase(0, drop);
    num_sent_ -= drop;
  }
  return piece;
}

std::size_t StopStringMatcher::HeldBack() const {
  std::size_t held = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stops_) {
    for (std::size_t k = std::min(stop.size() - 1, buffer_.size()); k > held; --k) {
      if (buffer_.compare(buffer_.size() - k, k, stop, 0, k) == 0) {
        held = k;
        break;
      }
    }
  }
  return held;
}

std::string StopStringMatcher::Finish() {
  std::string rest = buffer_.substr(num_sent_);
  buffer_.clear();
  num_sent_ = 0;
  return rest;
}

TextOut::TextOut(const SamplingParams& params, std::unique_ptr<TextDecoder> decoder)
    : decoder_(std::move(decoder)), stops_(params.stop) {
  if (!stops_.empty()) {
    matcher_.emplace(stops_, params.include_stop_str_in_output);
  }
}

TextOut::Piece TextOut::Push(TokenId token, bool check_stop) {
  std::string text = decoder_->Push(token);
  if (!matcher_) {
    return {std::move(text), std::nullopt};
  }
  auto piece = matcher_->Push(text, check_stop);
  Piece out{std::move(piece.text), std::nullopt};
  if (piece.matched) {
    out.stop = stops_[static_cast<std::size_t>(*piece.matched)];
  }
  return out;
}

TextOut::Piece TextOut::Finish() {
  std::string text = decoder_->Finish();
  if (!matcher_) {
    return {std::move(text), std::nullopt};
  }
  // U+FFFD for an unfinished character is not the model's text: no stop string is looked for.
  auto piece = matcher_->Push(text, /*check=*/false);
  piece.text += matcher_->Finish();
  return {std::move(piece.text), std::nullopt};
}

}  // namespace nibble
