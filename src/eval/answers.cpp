#include "eval/answers.h"

#include <vector>

#include "base/check.h"
#include "template/pystring.h"
#include "tokenizer/regex.h"

namespace nibble {
namespace {

constexpr std::string_view kMark = "#### ";

const text::Regex& Pattern(AnswerRule rule) {
  const auto compile = [](std::string_view pattern) {
    auto compiled = text::Regex::Compile(pattern);
    NIBBLE_CHECK(compiled.has_value(), "a pattern of our own");
    return std::move(*compiled);
  };
  static const text::Regex strict = compile(R"(#### (-?[0-9.,]+))");
  static const text::Regex flexible = compile(R"((-?[$0-9.,]{2,})|(-?[0-9]+))");
  return rule == AnswerRule::kStrict ? strict : flexible;
}

std::string Normalized(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c != ',' && c != '$') {
      out += c;
    }
  }
  if (const auto mark = out.rfind(kMark); mark != std::string::npos) {
    out.erase(0, mark + kMark.size());
  }
  if (out.ends_with('.')) {
    out.pop_back();
  } else if (out.ends_with(".\n")) {  // where Python's $ matches, too
    out.erase(out.size() - 2, 1);
  }
  return jinja::Lower(out);
}

}  // namespace

std::optional<std::string> ExtractGsm8kAnswer(std::string_view text, AnswerRule rule) {
  std::vector<text::Span> matches;
  Pattern(rule).FindAll(text, matches);
  if (matches.empty()) {
    return std::nullopt;
  }
  const text::Span match = rule == AnswerRule::kStrict ? matches.front() : matches.back();
  std::string_view found = text.substr(match.begin, match.end - match.begin);
  if (rule == AnswerRule::kStrict) {
    found.remove_prefix(kMark.size());
  }
  return std::string(found);
}

bool SameGsm8kAnswer(std::string_view answer, std::string_view reference) {
  return Normalized(answer) == Normalized(reference);
}

double PassAtK(std::int64_t n, std::int64_t c, std::int64_t k) {
  NIBBLE_CHECK(c >= 0 && c <= n && k >= 1 && k <= n, "pass@k of n samples");
  double all_fail = 1.0;
  if (n - c < k) {
    return 1.0;
  }
  for (std::int64_t i = n - c + 1; i <= n; ++i) {
    all_fail *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  }
  return 1.0 - all_fail;
}

}  // namespace nibble
