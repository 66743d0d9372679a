#include "eval/instruction_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/text.h"
#include "eval/capital_words.h"
#include "template/pystring.h"
#include "tokenizer/regex.h"

namespace nibble {
namespace {

using Predicate = InstructionCheck::Predicate;
using jinja::Side;
using jinja::Strip;

// A predicate, or nothing where the original would draw the missing argument at random.
using Made = Result<std::optional<Predicate>>;

class Arguments {
 public:
  explicit Arguments(const json::Object& values) : values_(values) {}

  Result<std::optional<std::string>> Text(std::string_view name) const {
    const json::Value* value = Find(name);
    if (value == nullptr) {
      return std::nullopt;
    }
    if (value->AsString() == nullptr) {
      return Wrong(name, "a string", *value);
    }
    return *value->AsString();
  }

  /// Absent also below `least`: the original draws one then.
  Result<std::optional<std::int64_t>> Count(std::string_view name, std::int64_t least = 0) const {
    const json::Value* value = Find(name);
    if (value == nullptr) {
      return std::nullopt;
    }
    if (!value->AsInt()) {
      return Wrong(name, "an integer", *value);
    }
    return *value->AsInt() < least ? std::nullopt : value->AsInt();
  }

  Result<std::vector<std::string>> Texts(std::string_view name) const {
    std::vector<std::string> texts;
    const json::Value* value = Find(name);
    if (value == nullptr) {
      return texts;
    }
    if (value->AsArray() == nullptr) {
      return Wrong(name, "an array of strings", *value);
    }
    for (const json::Value& element : *value->AsArray()) {
      if (element.AsString() == nullptr) {
        return Wrong(name, "an array of strings", element);
      }
      texts.push_back(*element.AsString());
    }
    return texts;
  }

  tl::unexpected<Error> Wrong(std::string_view name, std::string_view expected,
                              const json::Value& found) const {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("kwargs.{}: expected {}, found {}", name, expected, found.TypeName()));
  }

 private:
  const json::Value* Find(std::string_view name) const {
    const json::Value* value = values_.Find(name);
    return value == nullptr || value->IsNull() ? nullptr : value;
  }
  const json::Object& values_;
};

// "less than" or "at least" so many.
using Relation = std::function<bool(std::int64_t count)>;

Result<std::optional<Relation>> ReadRelation(const Arguments& arguments, std::string_view relation,
                                             std::string_view count, std::int64_t least = 0) {
  NIBBLE_TRY(word, arguments.Text(relation));
  NIBBLE_TRY(bound, arguments.Count(count, least));
  if (!word || !bound) {
    return std::nullopt;
  }
  if (*word == "less than") {
    return [n = *bound](std::int64_t found) { return found < n; };
  }
  if (*word == "at least") {
    return [n = *bound](std::int64_t found) { return found >= n; };
  }
  return arguments.Wrong(relation, "\"less than\" or \"at least\"", json::Value(*word));
}

class Pattern {
 public:
  static Result<Pattern> Compile(std::string_view pattern) {
    NIBBLE_TRY(regex, text::Regex::Compile(pattern));
    return Pattern(std::make_shared<const text::Regex>(std::move(regex)));
  }
  std::vector<text::Span> FindAll(std::string_view text) const {
    std::vector<text::Span> matches;
    regex_->FindAll(text, matches);
    return matches;
  }
  std::int64_t Count(std::string_view text) const {
    return static_cast<std::int64_t>(FindAll(text).size());
  }
  /// Python's re.split.
  std::vector<std::string_view> Split(std::string_view text) const {
    std::vector<std::string_view> pieces;
    std::size_t begin = 0;
    for (const text::Span& match : FindAll(text)) {
      pieces.push_back(text.substr(begin, match.begin - begin));
      begin = match.end;
    }
    pieces.push_back(text.substr(begin));
    return pieces;
  }

 private:
  explicit Pattern(std::shared_ptr<const text::Regex> regex) : regex_(std::move(regex)) {}
  std::shared_ptr<const text::Regex> regex_;  // shared: a std::function is copied
};

bool IsBlank(std::string_view text) { return Strip(text, Side::kBoth).empty(); }

Made Keywords(const Arguments& arguments) {
  NIBBLE_TRY(keywords, arguments.Texts("keywords"));
  if (keywords.empty()) {
    return std::nullopt;
  }
  std::vector<Pattern> patterns;
  for (const std::string& keyword : keywords) {
    NIBBLE_TRY(pattern, Pattern::Compile("(?i)" + keyword));
    patterns.push_back(std::move(pattern));
  }
  return [patterns](std::string_view response) {
    return std::ranges::all_of(patterns, [&](const Pattern& p) { return p.Count(response) > 0; });
  };
}

Made KeywordFrequency(const Arguments& arguments) {
  NIBBLE_TRY(keyword, arguments.Text("keyword"));
  NIBBLE_TRY(relation, ReadRelation(arguments, "relation", "frequency"));
  if (!keyword || keyword->empty() || !relation) {
    return std::nullopt;
  }
  NIBBLE_TRY(pattern, Pattern::Compile("(?i)" + std::string(Strip(*keyword, Side::kBoth))));
  return [pattern, holds = *relation](std::string_view response) {
    return holds(pattern.Count(response));
  };
}

Made ForbiddenWords(const Arguments& arguments) {
  NIBBLE_TRY(words, arguments.Texts("forbidden_words"));
  if (words.empty()) {
    return std::nullopt;
  }
  std::vector<Pattern> patterns;
  for (const std::string& word : words) {
    NIBBLE_TRY(pattern, Pattern::Compile("(?i)\\b" + word + "\\b"));
    patterns.push_back(std::move(pattern));
  }
  return [patterns](std::string_view response) {
    return std::ranges::none_of(patterns, [&](const Pattern& p) { return p.Count(response) > 0; });
  };
}

Made LetterFrequency(const Arguments& arguments) {
  NIBBLE_TRY(letter, arguments.Text("letter"));
  NIBBLE_TRY(relation, ReadRelation(arguments, "let_relation", "let_frequency"));
  if (!letter || letter->size() != 1 || !relation) {
    return std::nullopt;
  }
  const std::string wanted = jinja::Lower(*letter);
  if (wanted[0] < 'a' || wanted[0] > 'z') {
    return std::nullopt;
  }
  return [c = wanted[0], holds = *relation](std::string_view response) {
    return holds(std::ranges::count(jinja::Lower(response), c));
  };
}

Made NumberOfWords(const Arguments& arguments) {
  NIBBLE_TRY(relation, ReadRelation(arguments, "relation", "num_words"));
  if (!relation) {
    return std::nullopt;
  }
  NIBBLE_TRY(word, Pattern::Compile(R"(\w+)"));
  return
      [word, holds = *relation](std::string_view response) { return holds(word.Count(response)); };
}

Made Paragraphs(const Arguments& arguments) {
  NIBBLE_TRY(wanted, arguments.Count("num_paragraphs"));
  if (!wanted) {
    return std::nullopt;
  }
  NIBBLE_TRY(divider, Pattern::Compile(R"(\s?\*\*\*\s?)"));
  return [divider, n = *wanted](std::string_view response) {
    const auto pieces = divider.Split(response);
    auto count = static_cast<std::int64_t>(pieces.size());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (IsBlank(pieces[i])) {
        if (i != 0 && i + 1 != pieces.size()) {
          return false;
        }
        --count;
      }
    }
    return count == n;
  };
}

// The first word of a paragraph in lower case, up to the first punctuation mark.
std::string FirstWord(std::string_view paragraph) {
  const std::string_view word = jinja::Split(paragraph, std::nullopt, 1).front();
  std::string_view rest = Strip(Strip(word, Side::kLeft, "'"), Side::kLeft, "\"");
  rest = rest.substr(0, rest.find_first_of(".,?!'\""));
  return jinja::Lower(rest);
}

Made NthParagraphFirstWord(const Arguments& arguments) {
  NIBBLE_TRY(wanted, arguments.Count("num_paragraphs"));
  NIBBLE_TRY(nth, arguments.Count("nth_paragraph", 1));
  NIBBLE_TRY(first_word, arguments.Text("first_word"));
  if (!wanted || !nth || !first_word || *nth > *wanted) {
    return std::nullopt;
  }
  return [n = *wanted, nth = *nth, word = jinja::Lower(*first_word)](std::string_view response) {
    const auto pieces = jinja::Split(response, "\n\n", -1);
    const auto count =
        std::ranges::count_if(pieces, [](std::string_view piece) { return !IsBlank(piece); });
    if (nth > count) {
      return false;
    }
    // Among all pieces, the blank ones too: so the original counts.
    const std::string_view paragraph =
        Strip(pieces[static_cast<std::size_t>(nth - 1)], Side::kBoth);
    return !paragraph.empty() && count == n && FirstWord(paragraph) == word;
  };
}

Made Placeholders(const Arguments& arguments) {
  NIBBLE_TRY(wanted, arguments.Count("num_placeholders"));
  if (!wanted) {
    return std::nullopt;
  }
  NIBBLE_TRY(placeholder, Pattern::Compile(R"(\[.*?\])"));
  return [placeholder, n = *wanted](std::string_view response) {
    return placeholder.Count(response) >= n;
  };
}

Made Postscript(const Arguments& arguments) {
  NIBBLE_TRY(marker, arguments.Text("postscript_marker"));
  if (!marker) {
    return std::nullopt;
  }
  const std::string_view mark = Strip(*marker, Side::kBoth);
  const std::string body = mark == "P.P.S"  ? R"(p\.\s?p\.\s?s)"
                           : mark == "P.S." ? R"(p\.\s?s\.)"
                                            : jinja::Lower(mark);
  NIBBLE_TRY(pattern, Pattern::Compile(R"(\s*)" + body + ".*$"));
  return [pattern](std::string_view response) { return pattern.Count(jinja::Lower(response)) > 0; };
}

Made BulletLists(const Arguments& arguments) {
  NIBBLE_TRY(wanted, arguments.Count("num_bullets"));
  if (!wanted) {
    return std::nullopt;
  }
  NIBBLE_TRY(star, Pattern::Compile(R"(^\s*\*[^\*].*$)"));
  NIBBLE_TRY(dash, Pattern::Compile(R"(^\s*-.*$)"));
  return [star, dash, n = *wanted](std::string_view response) {
    return star.Count(response) + dash.Count(response) == n;
  };
}

Made ConstrainedResponse(const Arguments&) {
  return [](std::string_view response) {
    return response.find("My answer is yes.") != std::string_view::npos ||
           response.find("My answer is no.") != std::string_view::npos ||
           response.find("My answer is maybe.") != std::string_view::npos;
  };
}

std::string_view WithoutEnds(std::string_view text, std::string_view prefix,
                             std::string_view suffix) {
  text.remove_prefix(text.starts_with(prefix) ? prefix.size() : 0);
  text.remove_suffix(text.ends_with(suffix) ? suffix.size() : 0);
  return text;
}

Made HighlightedSections(const Arguments& arguments) {
  NIBBLE_TRY(wanted, arguments.Count("num_highlights"));
  if (!wanted) {
    return std::nullopt;
  }
  NIBBLE_TRY(single, Pattern::Compile(R"(\*[^\n\*]*\*)"));
  NIBBLE_TRY(twofold, Pattern::Compile(R"(\*\*[^\n\*]*\*\*)"));
  return [single, twofold, n = *wanted](std::string_view response) {
    std::int64_t count = 0;
    for (const text::Span& match : single.FindAll(response)) {
      const auto found = response.substr(match.begin, match.end - match.begin);
      count += IsBlank(Strip(found, Side::kBoth, "*")) ? 0 : 1;
    }
    for (const text::Span& match : twofold.FindAll(response)) {
      const auto found = response.substr(match.begin, match.end - match.begin);
      count += IsBlank(WithoutEnds(found, "**", "**")) ? 0 : 1;
    }
    return count >= n;
  };
}

Made MultipleSections(const Arguments& arguments) {
  NIBBLE_TRY(splitter, arguments.Text("section_spliter"));
  NIBBLE_TRY(wanted, arguments.Count("num_sections"));
  if (!splitter || !wanted) {
    return std::nullopt;
  }
  NIBBLE_TRY(mark,
             Pattern::Compile(fmt::format(R"(\s?{}\s?\d+\s?)", Strip(*splitter, Side::kBoth))));
  return [mark, n = *wanted](std::string_view response) { return mark.Count(response) >= n; };
}

Made JsonFormat(const Arguments&) {
  return [](std::string_view response) {
    std::string_view text = Strip(response, Side::kBoth);
    for (const std::string_view fence : {"```json", "```Json", "```JSON", "```"}) {
      text = WithoutEnds(text, fence, "");
    }
    return json::Parse(Strip(WithoutEnds(text, "", "```"), Side::kBoth),
                       {.duplicates = json::DuplicateKeys::kKeepLast})
        .has_value();
  };
}

Made Title(const Arguments&) {
  NIBBLE_TRY(pattern, Pattern::Compile(R"(<<[^\n]+>>)"));
  return [pattern](std::string_view response) {
    return std::ranges::any_of(pattern.FindAll(response), [&](const text::Span& match) {
      const auto found = response.substr(match.begin, match.end - match.begin);
      return !IsBlank(Strip(Strip(found, Side::kLeft, "<"), Side::kRight, ">"));
    });
  };
}

Made TwoResponses(const Arguments&) {
  return [](std::string_view response) {
    const auto pieces = jinja::Split(response, "******", -1);
    std::vector<std::string_view> valid;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (!IsBlank(pieces[i])) {
        valid.push_back(Strip(pieces[i], Side::kBoth));
      } else if (i != 0 && i + 1 != pieces.size()) {
        return false;
      }
    }
    return valid.size() == 2 && valid[0] != valid[1];
  };
}

Made RepeatPrompt(const Arguments& arguments) {
  NIBBLE_TRY(prompt, arguments.Text("prompt_to_repeat"));
  if (!prompt || prompt->empty()) {
    return std::nullopt;
  }
  return [wanted = jinja::Lower(Strip(*prompt, Side::kBoth))](std::string_view response) {
    return jinja::Lower(Strip(response, Side::kBoth)).starts_with(wanted);
  };
}

Made EndPhrase(const Arguments& arguments) {
  NIBBLE_TRY(phrase, arguments.Text("end_phrase"));
  if (!phrase) {
    return std::nullopt;
  }
  return [wanted = jinja::Lower(Strip(*phrase, Side::kBoth))](std::string_view response) {
    const std::string_view text = Strip(Strip(response, Side::kBoth), Side::kBoth, "\"");
    return jinja::Lower(text).ends_with(wanted);
  };
}

Made Quotation(const Arguments&) {
  return [](std::string_view response) {
    const std::string_view text = Strip(response, Side::kBoth);
    return text.size() > 1 && text.front() == '"' && text.back() == '"';
  };
}

Made CapitalWords(const Arguments& arguments) {
  NIBBLE_TRY(relation, ReadRelation(arguments, "capital_relation", "capital_frequency"));
  if (!relation) {
    return std::nullopt;
  }
  return
      [holds = *relation](std::string_view response) { return holds(CountCapitalWords(response)); };
}

Made NoComma(const Arguments&) {
  return [](std::string_view response) { return response.find(',') == std::string_view::npos; };
}

struct Checker {
  std::string_view id;
  Made (*make)(const Arguments& arguments) = nullptr;
  std::string_view needs;  // where there is no `make`
};
constexpr std::string_view kDetector = "needs a language detector";
constexpr Checker kCheckers[] = {
    {.id = "keywords:existence", .make = Keywords},
    {.id = "keywords:frequency", .make = KeywordFrequency},
    {.id = "keywords:forbidden_words", .make = ForbiddenWords},
    {.id = "keywords:letter_frequency", .make = LetterFrequency},
    {.id = "language:response_language", .needs = kDetector},
    {.id = "length_constraints:number_sentences", .needs = "needs NLTK's sentence model"},
    {.id = "length_constraints:number_paragraphs", .make = Paragraphs},
    {.id = "length_constraints:number_words", .make = NumberOfWords},
    {.id = "length_constraints:nth_paragraph_first_word", .make = NthParagraphFirstWord},
    {.id = "detectable_content:number_placeholders", .make = Placeholders},
    {.id = "detectable_content:postscript", .make = Postscript},
    {.id = "detectable_format:number_bullet_lists", .make = BulletLists},
    {.id = "detectable_format:constrained_response", .make = ConstrainedResponse},
    {.id = "detectable_format:number_highlighted_sections", .make = HighlightedSections},
    {.id = "detectable_format:multiple_sections", .make = MultipleSections},
    {.id = "detectable_format:json_format", .make = JsonFormat},
    {.id = "detectable_format:title", .make = Title},
    {.id = "combination:two_responses", .make = TwoResponses},
    {.id = "combination:repeat_prompt", .make = RepeatPrompt},
    {.id = "startend:end_checker", .make = EndPhrase},
    {.id = "startend:quotation", .make = Quotation},
    {.id = "change_case:capital_word_frequency", .make = CapitalWords},
    {.id = "change_case:english_capital", .needs = kDetector},
    {.id = "change_case:english_lowercase", .needs = kDetector},
    {.id = "punctuation:no_comma", .make = NoComma},
};

std::string JoinLines(std::span<const std::string_view> lines) {
  return std::string(Strip(fmt::format("{}", fmt::join(lines, "\n")), Side::kBoth));
}

}  // namespace

Result<InstructionCheck> InstructionCheck::Create(std::string_view id,
                                                  const json::Object& arguments) {
  const auto* checker =
      std::ranges::find_if(kCheckers, [&](const Checker& c) { return c.id == id; });
  if (checker == std::end(kCheckers)) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: not an instruction of IFEval", Quote(id)));
  }
  InstructionCheck check;
  if (checker->make == nullptr) {
    check.reason_ = checker->needs;
    return check;
  }
  auto made = checker->make(Arguments(arguments));
  if (!made) {
    return Fail(std::move(made.error()), fmt::format("{}: ", id));
  }
  if (*made) {
    check.follows_ = std::move(**made);
  } else {
    check.reason_ = "an argument is missing, which the original draws at random";
  }
  return check;
}

bool InstructionCheck::FollowsStrictly(std::string_view response) const {
  return !IsBlank(response) && follows_(response);
}

bool InstructionCheck::FollowsLoosely(std::string_view response) const {
  const auto lines = jinja::Split(response, "\n", -1);
  const std::span<const std::string_view> all(lines);
  const std::string variants[] = {
      std::string(response), JoinLines(all.subspan(1)), JoinLines(all.first(all.size() - 1)),
      all.size() > 1 ? JoinLines(all.subspan(1, all.size() - 2)) : std::string()};
  return std::ranges::any_of(variants, [&](const std::string& variant) {
    return FollowsStrictly(variant) || FollowsStrictly(jinja::Replace(variant, "*", "", -1));
  });
}

}  // namespace nibble
