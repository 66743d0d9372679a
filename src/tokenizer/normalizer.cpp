#include "tokenizer/normalizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "base/limits.h"
#include "base/text.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/unicode.h"

namespace nibble::text {
namespace {

constexpr std::size_t kMaxSteps = 256;
// How much longer all steps together may make a text. Real files stay below 10.
constexpr double kMaxGrowth = 1'000;
constexpr std::size_t kContentBytes = 256;

}  // namespace

Result<std::vector<const json::Value*>> FlattenSequence(const json::Value& spec,
                                                        std::string_view member,
                                                        std::string_view what) {
  std::vector<const json::Value*> flat;
  std::vector<const json::Value*> stack = {&spec};  // the next one last
  while (!stack.empty()) {
    const json::Value* value = stack.back();
    stack.pop_back();
    if (value->IsNull()) {
      continue;
    }
    if (!value->IsObject()) {
      return Fail(ErrorCode::kCorruptFile,
                  fmt::format("{}: expected an object, found {}", what, value->TypeName()));
    }
    if (TypeOf(*value) != "Sequence") {
      flat.push_back(value);
    } else {
      const json::Value* list = value->Find(member);
      if (list == nullptr || !list->IsArray()) {
        return Fail(ErrorCode::kCorruptFile,
                    fmt::format("{}: a Sequence without its array \"{}\"", what, member));
      }
      const json::Array& items = *list->AsArray();
      for (auto item = items.rbegin(); item != items.rend(); ++item) {
        stack.push_back(&*item);
      }
    }
    if (flat.size() + stack.size() > kMaxSteps) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("{}: more than {} steps", what, kMaxSteps));
    }
  }
  return flat;
}

std::string_view TypeOf(const json::Value& spec) {
  const json::Value* type = spec.Find("type");
  const std::string* name = type == nullptr ? nullptr : type->AsString();
  return name == nullptr ? std::string_view() : *name;
}

Result<bool> BoolMember(const json::Value& spec, std::string_view key, bool fallback,
                        std::string_view what) {
  const json::Value* value = spec.Find(key);
  if (value == nullptr || value->IsNull()) {
    return fallback;
  }
  if (!value->IsBool()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: \"{}\" is {}, expected a bool", what, key, value->TypeName()));
  }
  return *value->AsBool();
}

Result<std::string> StringMember(const json::Value& spec, std::string_view key,
                                 std::string_view what) {
  const json::Value* value = spec.Find(key);
  if (value == nullptr || !value->IsString()) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: \"{}\" is {}, expected a string", what, key,
                            value == nullptr ? "missing" : value->TypeName()));
  }
  return *value->AsString();
}

Result<Pattern> PatternMember(const json::Value& spec, std::string_view what) {
  const json::Value* value = spec.Find("pattern");
  if (value != nullptr && value->IsString()) {
    return Pattern{*value->AsString(), false};
  }
  if (value != nullptr) {
    for (const auto& [key, is_regex] : {std::pair("String", false), std::pair("Regex", true)}) {
      const json::Value* text = value->Find(key);
      if (text != nullptr && text->IsString()) {
        return Pattern{*text->AsString(), is_regex};
      }
    }
  }
  return Fail(
      ErrorCode::kCorruptFile,
      fmt::format("{}: \"pattern\" is neither {{\"String\": ...}} nor {{\"Regex\": ...}}", what));
}

void FindLiteral(std::string_view text, std::string_view needle, std::vector<Span>& matches) {
  for (std::size_t at = text.find(needle); at != std::string_view::npos && !needle.empty();
       at = text.find(needle, at + needle.size())) {
    matches.push_back({at, at + needle.size()});
  }
}

std::string ReplaceMatches(std::string_view text, const std::vector<Span>& matches,
                           std::string_view content) {
  std::string out;
  out.reserve(text.size() + matches.size() * content.size());
  std::size_t done = 0;
  for (const Span& match : matches) {
    out += text.substr(done, match.begin - done);
    out += content;
    done = match.end;
  }
  out += text.substr(done);
  return out;
}

Result<Normalizer> Normalizer::FromJson(const json::Value& spec) {
  Normalizer normalizer;
  NIBBLE_TRY(flat, FlattenSequence(spec, "normalizers", "normalizer"));
  double growth = 1;
  for (const json::Value* step : flat) {
    NIBBLE_TRY_VOID(normalizer.AddStep(*step, growth));
    if (growth > kMaxGrowth) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("normalizer: its steps could make a text {} times longer", growth));
    }
  }
  return normalizer;
}

Result<void> Normalizer::AddStep(const json::Value& spec, double& growth) {
  const std::string_view type = TypeOf(spec);
  const std::string what = fmt::format("normalizer {}", Quote(type));
  struct Simple {
    std::string_view type;
    Kind kind;
    double growth;  // bytes out for a byte in, at most
  };
  constexpr Simple kSimple[] = {
      {"NFC", Kind::kNfc, 3},
      {"NFD", Kind::kNfd, 3},
      {"NFKC", Kind::kNfkc, 11},  // U+FDFA
      {"NFKD", Kind::kNfkd, 11},
      {"Lowercase", Kind::kLowercase, 1.5},
      {"StripAccents", Kind::kStripAccents, 1},
      {"ByteLevel", Kind::kByteLevel, 2},
  };
  for (const Simple& simple : kSimple) {
    if (type == simple.type) {
      steps_.push_back({.kind = simple.kind});
      growth *= simple.growth;
      return {};
    }
  }
  if (type == "Strip") {
    NIBBLE_TRY(left, BoolMember(spec, "strip_left", true, what));
    NIBBLE_TRY(right, BoolMember(spec, "strip_right", true, what));
    steps_.push_back({.kind = Kind::kStrip, .left = left, .right = right});
    return {};
  }
  const bool replace = type == "Replace";
  if (!replace && type != "Prepend") {
    return Fail(ErrorCode::kUnsupported, fmt::format("{} is not supported", what));
  }
  Step step{.kind = replace ? Kind::kReplace : Kind::kPrepend};
  NIBBLE_TRY(content, StringMember(spec, replace ? "content" : "prepend", what));
  if (content.size() > kContentBytes) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("{}: a text of {} bytes, more than {}", what,
                                                       content.size(), kContentBytes));
  }
  step.content = std::move(content);
  if (replace) {
    NIBBLE_TRY(pattern, PatternMember(spec, what));
    if (pattern.is_regex) {
      auto regex = Regex::Compile(pattern.literal);
      if (!regex) {
        return Fail(regex.error(), fmt::format("{}: {}: ", what, Quote(pattern.literal)));
      }
      step.regex = std::make_shared<const Regex>(std::move(*regex));
      growth *= static_cast<double>(step.content.size() + 1);
    } else if (pattern.literal.empty()) {
      return Fail(ErrorCode::kUnsupported, fmt::format("{}: an empty pattern", what));
    } else {
      growth *= std::max(1.0, static_cast<double>(step.content.size()) /
                                  static_cast<double>(pattern.literal.size()));
      step.pattern = std::move(pattern.literal);
    }
  }
  steps_.push_back(std::move(step));
  return {};
}

void Normalizer::Apply(std::string& text) const {
  std::vector<Span> matches;
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc:
        text = Normalize(text, NormalForm::kNfc);
        break;
      case Kind::kNfd:
        text = Normalize(text, NormalForm::kNfd);
        break;
      case Kind::kNfkc:
        text = Normalize(text, NormalForm::kNfkc);
        break;
      case Kind::kNfkd:
        text = Normalize(text, NormalForm::kNfkd);
        break;
      case Kind::kLowercase:
        text = Lowercase(text);
        break;
      case Kind::kStripAccents:
        text = WithoutAccents(text);
        break;
      case Kind::kByteLevel:
        text = BytesToChars(text);
        break;
      case Kind::kReplace:
        matches.clear();
        if (step.regex != nullptr) {
          step.regex->FindAll(text, matches);
        } else {
          FindLiteral(text, step.pattern, matches);
        }
        if (!matches.empty()) {
          text = ReplaceMatches(text, matches, step.content);
        }
        break;
      case Kind::kPrepend:
        if (!text.empty()) {
          text.insert(0, step.content);
        }
        break;
      case Kind::kStrip: {
        std::size_t begin = 0;
        std::size_t end = text.size();
        while (step.left && begin < end) {
          const CodePoint c = DecodeAt(text, begin);
          if ((ClassOf(c.value) & kSpace) == 0) {
            break;
          }
          begin += c.size;
        }
        while (step.right && end > begin) {
          const std::size_t previous = PreviousStart(text, end);
          if ((ClassOf(DecodeAt(text, previous).value) & kSpace) == 0) {
            break;
          }
          end = previous;
        }
        text = text.substr(begin, end - begin);
        break;
      }
    }
  }
}

}  // namespace nibble::text
