#include "tokenizer/decoder.h"

#include <fmt/core.h>

#include <charconv>
#include <optional>
#include <utility>

#include "base/text.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr int kMaxStrip = 1'000;

/// The byte of "<0x41>".
std::optional<char> ByteOf(std::string_view name) {
  if (name.size() != 6 || name.substr(0, 3) != "<0x" || name[5] != '>') {
    return std::nullopt;
  }
  unsigned value = 0;
  const char* end = name.data() + 5;
  const auto [parsed, error] = std::from_chars(name.data() + 3, end, value, 16);
  if (error != std::errc() || parsed != end) {
    return std::nullopt;
  }
  return static_cast<char>(value);
}

Result<int> CountMember(const json::Value& spec, std::string_view key, std::string_view what) {
  const json::Value* value = spec.Find(key);
  const auto count = value == nullptr ? std::nullopt : value->AsInt();
  if (!count || *count < 0 || *count > kMaxStrip) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: \"{}\" must be a number from 0 to {}", what, key, kMaxStrip));
  }
  return static_cast<int>(*count);
}

}  // namespace

Result<Decoder> Decoder::FromJson(const json::Value& spec) {
  Decoder decoder;
  if (spec.IsNull()) {
    decoder.join_with_space_ = true;
    return decoder;
  }
  NIBBLE_TRY(flat, FlattenSequence(spec, "decoders", "decoder"));
  bool fused = false;
  for (const json::Value* step : flat) {
    NIBBLE_TRY_VOID(decoder.AddStep(*step, fused));
  }
  return decoder;
}

Result<void> Decoder::AddStep(const json::Value& spec, bool& fused) {
  const std::string_view type = TypeOf(spec);
  const std::string what = fmt::format("decoder \"{}\"", Quote(type));
  if (type == "Fuse") {
    fused = true;
    return {};
  }
  if (type == "Strip") {
    Step step{.kind = Kind::kStrip};
    NIBBLE_TRY(content, StringMember(spec, "content", what));
    NIBBLE_TRY(start, CountMember(spec, "start", what));
    NIBBLE_TRY(stop, CountMember(spec, "stop", what));
    step.content = std::move(content);
    step.start = start;
    step.stop = stop;
    if (!fused) {
      steps_.push_back(std::move(step));
      return {};
    }
    // The end of a stream is not known while it runs, so only its beginning can be stripped.
    if (stop > 0 || strip_begin_ > 0 || step.content.size() != 1) {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{} after Fuse is only supported for the beginning of the text and "
                              "one ASCII character",
                              what));
    }
    strip_begin_ = start;
    strip_char_ = step.content[0];
    return {};
  }
  if (fused) {
    return Fail(ErrorCode::kUnsupported, fmt::format("{} after Fuse is not supported", what));
  }
  if (type == "ByteLevel" || type == "ByteFallback") {
    if (invalid_ != Invalid::kNone) {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{} after another decoder of bytes is not supported", what));
    }
    const bool byte_level = type == "ByteLevel";
    invalid_ = byte_level ? Invalid::kPerSubpart : Invalid::kPerByte;
    steps_.push_back({.kind = byte_level ? Kind::kByteLevel : Kind::kByteFallback});
    fused = fused || byte_level;  // it joins all tokens
    return {};
  }
  if (type == "Replace") {
    NIBBLE_TRY(pattern, PatternMember(spec, what));
    if (pattern.is_regex || pattern.literal.empty()) {
      return Fail(ErrorCode::kUnsupported,
                  fmt::format("{}: only a non-empty String pattern is supported", what));
    }
    NIBBLE_TRY(content, StringMember(spec, "content", what));
    steps_.push_back({.kind = Kind::kReplace,
                      .pattern = std::move(pattern.literal),
                      .content = std::move(content)});
    return {};
  }
  if (type == "Metaspace") {
    Step step{.kind = Kind::kMetaspace};
    NIBBLE_TRY(replacement, StringMember(spec, "replacement", what));
    if (replacement.empty()) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("{}: an empty replacement", what));
    }
    step.pattern = std::move(replacement);
    NIBBLE_TRY(add_prefix_space, BoolMember(spec, "add_prefix_space", true, what));
    step.prepend = add_prefix_space;
    if (spec.Find("prepend_scheme") != nullptr) {
      NIBBLE_TRY(scheme, StringMember(spec, "prepend_scheme", what));
      step.prepend = scheme != "never";
    }
    steps_.push_back(std::move(step));
    return {};
  }
  return Fail(ErrorCode::kUnsupported, fmt::format("{} is not supported", what));
}

std::string Decoder::Piece(std::string_view name, bool added, bool first, bool* is_byte) const {
  *is_byte = false;
  std::string text(name);
  for (const Step& step : steps_) {
    if (*is_byte) {
      break;  // a raw byte is no text any more
    }
    switch (step.kind) {
      case Kind::kByteLevel:
        if (auto bytes = CharsToBytes(text)) {
          // An added token is text, not spelled bytes: "õ" would become a byte that is no UTF-8.
          if (!added || IsValidUtf8(*bytes)) {
            text = std::move(*bytes);
          }
        }
        break;
      case Kind::kReplace: {
        std::vector<Span> matches;
        FindLiteral(text, step.pattern, matches);
        text = ReplaceMatches(text, matches, step.content);
        break;
      }
      case Kind::kMetaspace: {
        std::vector<Span> matches;
        FindLiteral(text, step.pattern, matches);
        text = ReplaceMatches(text, matches, first && step.prepend ? "" : " ");
        break;
      }
      case Kind::kByteFallback:
        if (const auto byte = ByteOf(text)) {
          text.assign(1, *byte);
          *is_byte = true;
        }
        break;
      case Kind::kStrip: {
        if (step.content.empty()) {
          break;
        }
        std::string_view rest = text;
        for (int i = 0; i < step.start && rest.starts_with(step.content); ++i) {
          rest.remove_prefix(step.content.size());
        }
        for (int i = 0; i < step.stop && rest.ends_with(step.content); ++i) {
          rest.remove_suffix(step.content.size());
        }
        text = std::string(rest);
        break;
      }
    }
  }
  if (join_with_space_ && !first) {
    text.insert(0, 1, ' ');
  }
  return text;
}

}  // namespace nibble::text
