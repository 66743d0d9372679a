#include "tokenizer/pre_tokenizer.h"

#include <fmt/core.h>

#include <array>
#include <utility>

#include "base/text.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr WordRules kGpt2 = {.gpt2 = true};

Result<SplitBehavior> BehaviorMember(const json::Value& spec, std::optional<SplitBehavior> fallback,
                                     std::string_view what) {
  constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  };
  if (fallback && spec.Find("behavior") == nullptr) {
    return *fallback;
  }
  NIBBLE_TRY(name, StringMember(spec, "behavior", what));
  for (const auto& [known, behavior] : kNames) {
    if (name == known) {
      return behavior;
    }
  }
  return Fail(ErrorCode::kUnsupported,
              fmt::format("{}: behavior \"{}\" is not known", what, Quote(name)));
}

/// Every character of the given classes is a match of its own.
void FindChars(std::string_view text, std::uint8_t classes, std::vector<Span>& matches) {
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeAt(text, at);
    if ((ClassOf(c.value) & classes) != 0) {
      matches.push_back({at, at + c.size});
    }
    at += c.size;
  }
}

/// \w+|[^\w\s]+
void FindWords(std::string_view text, std::vector<Span>& matches) {
  enum class Run { kNone, kWord, kOther };
  Run run = Run::kNone;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = DecodeAt(text, at);
    const std::uint8_t bits = ClassOf(c.value);
    const Run kind = (bits & kWord) != 0    ? Run::kWord
                     : (bits & kSpace) != 0 ? Run::kNone
                                            : Run::kOther;
    if (kind != Run::kNone && kind == run) {
      matches.back().end = at + c.size;
    } else if (kind != Run::kNone) {
      matches.push_back({at, at + c.size});
    }
    run = kind;
    at += c.size;
  }
}

}  // namespace

Result<PreTokenizer> PreTokenizer::FromJson(const json::Value& spec) {
  PreTokenizer result;
  NIBBLE_TRY(flat, FlattenSequence(spec, "pretokenizers", "pre_tokenizer"));
  for (const json::Value* item : flat) {
    NIBBLE_TRY(step, StepFromJson(*item));
    if (step.kind == Kind::kByteLevel && result.byte_level_) {
      return Fail(ErrorCode::kUnsupported, "pre_tokenizer: ByteLevel twice is not supported");
    }
    result.map_bytes_ = result.byte_level_;
    result.byte_level_ = result.byte_level_ || step.kind == Kind::kByteLevel;
    result.steps_.push_back(std::move(step));
  }
  return result;
}

Result<PreTokenizer::Step> PreTokenizer::StepFromJson(const json::Value& spec) {
  const std::string_view type = TypeOf(spec);
  const std::string what = fmt::format("pre_tokenizer \"{}\"", Quote(type));
  if (type == "ByteLevel") {
    Step step{.kind = Kind::kByteLevel, .rules = kGpt2};
    NIBBLE_TRY(prefix, BoolMember(spec, "add_prefix_space", true, what));
    NIBBLE_TRY(use_regex, BoolMember(spec, "use_regex", true, what));
    step.add_prefix_space = prefix;
    step.split = use_regex;
    return step;
  }
  if (type == "Split") {
    return SplitFromJson(spec, what);
  }
  if (type == "Digits") {
    NIBBLE_TRY(individual, BoolMember(spec, "individual_digits", false, what));
    return Step{.kind = Kind::kDigits,
                .behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous};
  }
  if (type == "Metaspace") {
    return MetaspaceFromJson(spec, what);
  }
  if (type == "Whitespace") {
    return Step{.kind = Kind::kWhitespace, .behavior = SplitBehavior::kRemoved, .invert = true};
  }
  if (type == "WhitespaceSplit") {
    return Step{.kind = Kind::kWhitespaceSplit, .behavior = SplitBehavior::kRemoved};
  }
  if (type == "Punctuation") {
    NIBBLE_TRY(behavior, BehaviorMember(spec, SplitBehavior::kIsolated, what));
    return Step{.kind = Kind::kPunctuation, .behavior = behavior};
  }
  if (type == "CharDelimiterSplit") {
    NIBBLE_TRY(delimiter, StringMember(spec, "delimiter", what));
    if (delimiter.empty()) {
      return Fail(ErrorCode::kCorruptFile, fmt::format("{}: an empty delimiter", what));
    }
    return Step{.kind = Kind::kLiteral,
                .literal = std::move(delimiter),
                .behavior = SplitBehavior::kRemoved};
  }
  return Fail(ErrorCode::kUnsupported, fmt::format("{} is not supported", what));
}

Result<PreTokenizer::Step> PreTokenizer::SplitFromJson(const json::Value& spec,
                                                       std::string_view what) {
  NIBBLE_TRY(pattern, PatternMember(spec, what));
  NIBBLE_TRY(behavior, BehaviorMember(spec, std::nullopt, what));
  NIBBLE_TRY(invert, BoolMember(spec, "invert", false, what));
  Step step{.kind = Kind::kLiteral, .behavior = behavior, .invert = invert};
  if (!pattern.is_regex) {
    step.literal = std::move(pattern.literal);
    return step;
  }
  // A known pattern matches everything, so these two behaviours both keep every match.
  const bool keeps_matches =
      (behavior == SplitBehavior::kIsolated) || (behavior == SplitBehavior::kRemoved && invert);
  if (const auto rules = KnownPattern(pattern.literal); rules && keeps_matches) {
    step.kind = Kind::kWords;
    step.rules = *rules;
    return step;
  }
  auto regex = Regex::Compile(pattern.literal);
  if (!regex) {
    return Fail(regex.error(), fmt::format("{}: pattern \"{}\": ", what, Quote(pattern.literal)));
  }
  step.kind = Kind::kRegex;
  step.regex = std::make_shared<const Regex>(std::move(*regex));
  return step;
}

Result<PreTokenizer::Step> PreTokenizer::MetaspaceFromJson(const json::Value& spec,
                                                           std::string_view what) {
  Step step{.kind = Kind::kMetaspace, .behavior = SplitBehavior::kMergedWithNext};
  NIBBLE_TRY(replacement, StringMember(spec, "replacement", what));
  if (replacement.empty() || DecodeAt(replacement, 0).size != replacement.size()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: \"replacement\" must be one character", what));
  }
  step.literal = std::move(replacement);
  NIBBLE_TRY(split, BoolMember(spec, "split", true, what));
  step.split = split;
  NIBBLE_TRY(add_prefix_space, BoolMember(spec, "add_prefix_space", true, what));  // older files
  step.prepend = add_prefix_space ? PrependScheme::kAlways : PrependScheme::kNever;
  if (spec.Find("prepend_scheme") != nullptr) {
    NIBBLE_TRY(scheme, StringMember(spec, "prepend_scheme", what));
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      return Fail(ErrorCode::kUnsupported, fmt::format("{}: prepend_scheme is not known", what));
    }
    step.prepend = scheme == "always"  ? PrependScheme::kAlways
                   : scheme == "first" ? PrependScheme::kFirst
                                       : PrependScheme::kNever;
  }
  return step;
}

void PreTokenizer::FindMatches(const Step& step, std::string_view text,
                               std::vector<Span>& matches) {
  switch (step.kind) {
    case Kind::kByteLevel:
    case Kind::kWords:
      SplitWords(step.rules, text, matches);
      break;
    case Kind::kLiteral:
    case Kind::kMetaspace:
      FindLiteral(text, step.literal, matches);
      break;
    case Kind::kRegex:
      step.regex->FindAll(text, matches);
      break;
    case Kind::kDigits:
      FindChars(text, kNumber, matches);
      break;
    case Kind::kWhitespace:
      FindWords(text, matches);
      break;
    case Kind::kWhitespaceSplit:
      FindChars(text, kSpace, matches);
      break;
    case Kind::kPunctuation:
      FindChars(text, kPunct | kAsciiPunct, matches);
      break;
  }
}

void PreTokenizer::SplitPieces(const Step& step, Pieces& pieces) {
  const bool all_matches = step.kind == Kind::kByteLevel || step.kind == Kind::kWords;
  std::vector<Span> result;
  std::vector<Span> matches;
  for (const Span& piece : pieces.spans()) {
    // A step sees one piece at a time: assertions do not look across its ends.
    std::vector<Span>& found = all_matches ? result : matches;
    const std::size_t first = all_matches ? result.size() : 0;
    matches.clear();
    FindMatches(step, pieces.Text(piece), found);
    for (std::size_t i = first; i < found.size(); ++i) {
      found[i].begin += piece.begin;
      found[i].end += piece.begin;
    }
    if (!all_matches && matches.empty() && !step.invert) {
      result.push_back(piece);
    } else if (!all_matches) {
      ApplyBehavior(piece, matches, step.behavior, step.invert, result);
    }
  }
  pieces.spans() = std::move(result);
}

void PreTokenizer::ApplyMetaspace(const Step& step, Pieces& pieces, bool starts_text) {
  std::string text;
  std::vector<Span> spans;
  for (const Span& span : pieces.spans()) {
    const std::size_t begin = text.size();
    for (const char c : pieces.Text(span)) {
      if (c == ' ') {
        text += step.literal;
      } else {
        text.push_back(c);
      }
    }
    const bool wanted = step.prepend == PrependScheme::kAlways ||
                        (step.prepend == PrependScheme::kFirst && starts_text && span.begin == 0);
    if (wanted && text.compare(begin, step.literal.size(), step.literal) != 0) {
      text.insert(begin, step.literal);
    }
    spans.push_back({begin, text.size()});
  }
  pieces.Replace(std::move(text), std::move(spans));
  if (step.split) {
    SplitPieces(step, pieces);
  }
}

void PreTokenizer::AddPrefixSpaces(Pieces& pieces) {
  std::string text;
  text.reserve(pieces.text().size() + pieces.spans().size());
  std::vector<Span> spans;
  spans.reserve(pieces.spans().size());
  for (const Span& span : pieces.spans()) {
    const std::string_view piece = pieces.Text(span);
    const std::size_t begin = text.size();
    if (piece.front() != ' ') {
      text.push_back(' ');
    }
    text += piece;
    spans.push_back({begin, text.size()});
  }
  pieces.Replace(std::move(text), std::move(spans));
}

void PreTokenizer::Apply(Pieces& pieces, bool starts_text) const {
  const auto convert = [&](auto function) {
    std::string text;
    std::vector<Span> spans;
    for (const Span& span : pieces.spans()) {
      const std::size_t begin = text.size();
      text += function(pieces.Text(span));
      spans.push_back({begin, text.size()});
    }
    pieces.Replace(std::move(text), std::move(spans));
  };
  for (const Step& step : steps_) {
    if (step.kind == Kind::kMetaspace) {
      ApplyMetaspace(step, pieces, starts_text);
      continue;
    }
    if (step.kind != Kind::kByteLevel) {
      SplitPieces(step, pieces);
      continue;
    }
    if (step.add_prefix_space) {
      AddPrefixSpaces(pieces);
    }
    if (step.split) {
      SplitPieces(step, pieces);
    }
    if (map_bytes_) {
      convert(BytesToChars);
    }
  }
  if (map_bytes_) {
    // Steps after ByteLevel cut its alphabet; a Metaspace there may have left it.
    convert(
        [](std::string_view piece) { return CharsToBytes(piece).value_or(std::string(piece)); });
  }
}

}  // namespace nibble::text
