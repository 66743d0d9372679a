#include "compress/module_names.h"

#include <algorithm>
#include <cctype>
#include <numeric>

namespace nibble {
namespace {

constexpr std::string_view kRegexPrefix = "re:";
constexpr std::string_view kWeightSuffix = ".weight";

bool MatchesGlob(std::string_view glob, std::string_view text) {
  std::size_t g = 0, t = 0;
  std::size_t star = std::string_view::npos, resume = 0;  // the last *, and what it ends before
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      resume = t;
    } else if (g < glob.size() && (glob[g] == '?' || glob[g] == text[t])) {
      ++g;
      ++t;
    } else if (star != std::string_view::npos) {
      g = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  return std::ranges::all_of(glob.substr(g), [](char c) { return c == '*'; });
}

// An expression as the glob that a reader would take it for.
std::string AsGlob(std::string_view pattern) {
  if (!pattern.starts_with(kRegexPrefix)) {
    return std::string(pattern);
  }
  std::string glob;
  for (const char c : pattern.substr(kRegexPrefix.size())) {
    if (c == '*' && !glob.empty() && glob.back() == '.') {
      glob.back() = '*';  // .*
    } else if (std::string_view("\\^$()+?").find(c) == std::string_view::npos) {
      glob += c;
    }
  }
  return glob;
}

// Levenshtein's distance, with * for any characters.
std::size_t Distance(std::string_view glob, std::string_view name) {
  std::vector<std::size_t> row(name.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (const char c : glob) {
    std::size_t diagonal = row[0];
    row[0] += c == '*' ? 0 : 1;
    for (std::size_t i = 1; i <= name.size(); ++i) {
      const std::size_t above = row[i];
      if (c == '*') {
        row[i] = std::min(above, row[i - 1]);
      } else {
        row[i] = std::min({above + 1, row[i - 1] + 1, diagonal + (c == name[i - 1] ? 0U : 1U)});
      }
      diagonal = above;
    }
  }
  return row.back();
}

}  // namespace

Result<ModulePattern> ModulePattern::Compile(std::string_view text) {
  ModulePattern out;
  if (!text.starts_with(kRegexPrefix)) {
    out.glob_ = text;
    return out;
  }
  auto expression = ModuleRule::Compile(text.substr(kRegexPrefix.size()));
  if (!expression) {
    return Fail(ErrorCode::kInvalidArgument, expression.error().message);
  }
  out.expression_ = std::move(*expression);
  return out;
}

bool ModulePattern::Matches(std::string_view module) const {
  return expression_ ? expression_->Matches(module) : MatchesGlob(glob_, module);
}

std::string ModuleOfWeight(std::string_view weight) {
  return std::string(weight.substr(0, weight.size() - kWeightSuffix.size()));
}

std::vector<std::string> WithoutNumbers(std::span<const std::string> modules) {
  std::vector<std::string> out;
  for (const std::string& module : modules) {
    std::string name;
    for (const char c : module) {
      const bool counts = std::isdigit(static_cast<unsigned char>(c)) != 0 &&
                          (name.ends_with('.') || name.ends_with('*'));
      if (!counts) {
        name += c;
      } else if (name.back() != '*') {
        name += '*';
      }
    }
    if (std::ranges::find(out, name) == out.end()) {
      out.push_back(std::move(name));
    }
  }
  return out;
}

std::vector<std::string> NearestNames(std::string_view pattern, std::span<const std::string> names,
                                      std::size_t count) {
  std::vector<std::string> out(names.begin(), names.end());
  const std::string glob = AsGlob(pattern);
  std::ranges::stable_sort(out, {}, [&](const std::string& name) { return Distance(glob, name); });
  out.resize(std::min(count, out.size()));
  return out;
}

}  // namespace nibble
