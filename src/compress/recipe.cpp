#include "compress/recipe.h"

#include <fmt/format.h>
#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/text.h"
#include "checkpoint/module_rule.h"
#include "compress/module_names.h"
#include "compress/quantize.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 20;
constexpr std::size_t kNearNames = 3;

// A mistake in the file. Thrown and caught in this file only, as yaml-cpp does with its own.
struct Mistake {
  int line = 0;
  std::string what;
};

int LineOf(const YAML::Node& node) { return node.Mark().line + 1; }

[[noreturn]] void Wrong(const YAML::Node& node, std::string what) {
  throw Mistake{LineOf(node), std::move(what)};
}

std::string TextOf(const YAML::Node& node, std::string_view key) {
  if (!node.IsScalar()) {
    Wrong(node, fmt::format("{} takes a word", key));
  }
  return node.Scalar();
}

bool FlagOf(const YAML::Node& node, std::string_view key) {
  bool value = false;
  if (!node.IsScalar() || !YAML::convert<bool>::decode(node, value)) {
    Wrong(node, fmt::format("{} takes true or false", key));
  }
  return value;
}

Scheme BitsOf(const YAML::Node& node) {
  std::int64_t bits = 0;
  const bool is_number = node.IsScalar() && YAML::convert<std::int64_t>::decode(node, bits);
  const auto uniform = is_number ? ParseScheme(fmt::format("int{}", bits)) : std::nullopt;
  if (!uniform) {
    Wrong(node, fmt::format("bits takes 2, 3, 4, 5, 6 or 8{}",
                            node.IsScalar() ? fmt::format(", not {}", Quote(node.Scalar())) : ""));
  }
  return *uniform;
}

std::int64_t GroupSizeOf(const YAML::Node& node) {
  if (node.IsScalar() && node.Scalar() == "tensor") {
    return kWholeTensor;
  }
  std::int64_t value = 0;
  if (!node.IsScalar() || !YAML::convert<std::int64_t>::decode(node, value) || value < 0) {
    Wrong(node, "group_size takes a whole number of 0 or more, or tensor");
  }
  return value;
}

QuantizeMethod MethodOf(const YAML::Node& node) {
  const std::string word = TextOf(node, "method");
  const auto method = ParseMethod(word);
  if (!method) {
    Wrong(node,
          fmt::format("\"{}\" is no method: use {}", Quote(word), fmt::join(MethodWords(), ", ")));
  }
  return *method;
}

Scheme SchemeOf(const YAML::Node& node) {
  const std::string word = TextOf(node, "scheme");
  const auto scheme = ParseScheme(word);
  if (!scheme) {
    Wrong(node, fmt::format("\"{}\" is no scheme: did you mean {}?", Quote(word),
                            fmt::join(NearestNames(word, SchemeWords(), kNearNames), ", ")));
  }
  return *scheme;
}

// Reads a mapping: every key once, and known.
class Settings {
 public:
  Settings(const YAML::Node& map, std::vector<std::string> keys) {
    if (!map.IsMap()) {
      Wrong(map, fmt::format("expected a mapping with {}", fmt::join(keys, ", ")));
    }
    for (const auto& entry : map) {
      const std::string key = TextOf(entry.first, "a key");
      if (key == "<<") {
        Wrong(entry.first, "merge keys are not read: write the settings out");
      }
      if (std::ranges::find(keys, key) == keys.end()) {
        Wrong(entry.first, fmt::format("\"{}\" is no key here: did you mean {}?", Quote(key),
                                       fmt::join(NearestNames(key, keys, 1), "")));
      }
      if (entry.second.IsNull()) {  // its mark is that of whatever comes next
        Wrong(entry.first, fmt::format("{} has no value: give one, or take the line out", key));
      }
      if (!values_.emplace(key, entry.second).second) {
        Wrong(entry.first, fmt::format("{} is given twice", key));
      }
    }
  }
  const YAML::Node* Find(std::string_view key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  std::map<std::string, YAML::Node, std::less<>> values_;
};

// scheme, bits, group_size, symmetric and skip, over what holds without them: another scheme keeps
// the groups and zero points of the one before.
Scheme ReadScheme(const Settings& settings, const Scheme& without) {
  Scheme scheme = without;
  const YAML::Node* word = settings.Find("scheme");
  const YAML::Node* bits = settings.Find("bits");
  if (word != nullptr && bits != nullptr) {
    Wrong(*bits, "scheme and bits say the same thing: keep one");
  }
  if (word != nullptr) {
    scheme = SchemeOf(*word);
  } else if (bits != nullptr) {
    scheme = BitsOf(*bits);
  }
  if (!scheme.has_own_groups() && !without.has_own_groups()) {
    scheme.group_size = without.group_size;
    scheme.symmetric = without.symmetric;
  }
  for (const char* key : {"group_size", "symmetric"}) {
    if (const YAML::Node* node = settings.Find(key); node != nullptr && scheme.has_own_groups()) {
      Wrong(*node, fmt::format("this scheme settles {} itself: leave it out, or use int4", key));
    }
  }
  if (const YAML::Node* group = settings.Find("group_size")) {
    scheme.group_size = GroupSizeOf(*group);
  }
  if (const YAML::Node* symmetric = settings.Find("symmetric")) {
    scheme.symmetric = FlagOf(*symmetric, "symmetric");
    if (scheme.is_log() && !scheme.symmetric) {
      Wrong(*symmetric, "this scheme has no zero points: leave symmetric out, or use int4");
    }
  }
  if (const YAML::Node* skip = settings.Find("skip"); skip != nullptr && FlagOf(*skip, "skip")) {
    for (const char* key : {"scheme", "bits", "group_size", "symmetric", "method"}) {
      if (const YAML::Node* other = settings.Find(key)) {
        Wrong(*other, fmt::format("skip leaves the weights as floats: leave out {}", key));
      }
    }
    scheme = {.keeps_floats = true};
  }
  return scheme;
}

std::vector<Recipe::Pattern> PatternsOf(const YAML::Node& rule, const YAML::Node* match) {
  if (match == nullptr) {
    Wrong(rule, "this rule has no match: which modules is it for?");
  }
  std::vector<Recipe::Pattern> patterns;
  const auto add = [&](const YAML::Node& node) {
    if (node.IsNull()) {  // its mark is that of whatever comes next
      Wrong(*match, "match has an empty line: give a pattern, or take it out");
    }
    patterns.push_back({.text = TextOf(node, "match"), .line = LineOf(node)});
    if (auto compiled = ModulePattern::Compile(patterns.back().text); !compiled) {
      Wrong(node, compiled.error().message);
    }
  };
  if (match->IsSequence()) {
    std::ranges::for_each(*match, add);
  } else {
    add(*match);
  }
  if (patterns.empty()) {
    Wrong(*match, "match has no pattern: which modules is this rule for?");
  }
  return patterns;
}

Recipe::Rule ReadRule(const YAML::Node& node, const Recipe& recipe) {
  const Settings settings(node,
                          {"match", "scheme", "bits", "group_size", "symmetric", "method", "skip"});
  Recipe::Rule rule{.match = PatternsOf(node, settings.Find("match")), .plan = recipe.rest};
  rule.plan.where = fmt::format("{}:{}", recipe.source, LineOf(node));
  rule.plan.scheme = ReadScheme(settings, rule.plan.scheme);
  if (const YAML::Node* method = settings.Find("method")) {
    rule.plan.method = MethodOf(*method);
    if (rule.plan.method != QuantizeMethod::kAuto && rule.plan.method != QuantizeMethod::kRtn &&
        rule.plan.method != QuantizeMethod::kGptq) {
      Wrong(*method, fmt::format("{} works on the model as a whole: give it at the top of the "
                                 "file; a rule takes auto, rtn or gptq",
                                 method->Scalar()));
    }
  }
  return rule;
}

// What a method of the run does to each module.
QuantizeMethod RoundingOf(QuantizeMethod method) {
  switch (method) {
    case QuantizeMethod::kRtn:
    case QuantizeMethod::kAwq:
    case QuantizeMethod::kSmoothQuant:
      return QuantizeMethod::kRtn;
    case QuantizeMethod::kGptq:
    case QuantizeMethod::kAwqGptq:
    case QuantizeMethod::kLearned:
      return QuantizeMethod::kGptq;
    case QuantizeMethod::kAuto:
      break;
  }
  return QuantizeMethod::kAuto;
}

Recipe ReadRecipe(const YAML::Node& root, const std::string& source) {
  Recipe recipe{.source = source};
  if (!root.IsMap()) {
    throw Mistake{1, "a recipe is a mapping with scheme, method or modules, as \"scheme: int4\""};
  }
  const Settings settings(root, {"method", "scheme", "bits", "group_size", "symmetric", "modules"});
  recipe.rest.where = fmt::format("{}:{}", source, LineOf(root));
  recipe.rest.scheme = ReadScheme(settings, {});
  if (const YAML::Node* method = settings.Find("method")) {
    recipe.method = MethodOf(*method);
    recipe.method_where = fmt::format("{}:{}", source, LineOf(*method));
    recipe.rest.method = RoundingOf(*recipe.method);
  }
  if (const YAML::Node* modules = settings.Find("modules")) {
    if (!modules->IsSequence()) {
      Wrong(*modules, "modules is a list of rules, each with match");
    }
    for (const YAML::Node& rule : *modules) {
      if (rule.IsNull()) {
        Wrong(*modules, fmt::format("rule {} is empty: give it match, or take it out",
                                    recipe.rules.size() + 1));
      }
      recipe.rules.push_back(ReadRule(rule, recipe));
    }
  }
  return recipe;
}

// The one document of the file.
YAML::Node Load(std::string_view text) {
  const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
  if (documents.size() > 1) {
    Wrong(documents[1], "a second document begins here: a recipe is one, without ---");
  }
  return documents.empty() ? YAML::Node() : documents.front();
}

// What a reader of yaml-cpp's own complaint would not see.
std::string AdviceFor(std::string_view text, int line) {
  for (; line > 1; --line) {
    const std::size_t end = text.find('\n');
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  const std::size_t begin = text.find_first_not_of(" \t");
  return text.substr(0, begin).find('\t') == std::string_view::npos
             ? ""
             : "; there is a tab, and YAML is indented by spaces";
}

json::Object JsonOf(const ModulePlan& plan) {
  json::Object out;
  out.Set("scheme", WordOf(plan.scheme));
  if (!plan.scheme.has_own_groups()) {
    out.Set("group_size", plan.scheme.group_size == kWholeTensor
                              ? json::Value("tensor")
                              : json::Value(plan.scheme.group_size));
    out.Set("symmetric", plan.scheme.symmetric);
  }
  if (plan.method != QuantizeMethod::kAuto) {
    out.Set("method", Name(plan.method));
  }
  return out;
}

bool IsTable(std::string_view weight) {
  return weight == "model.embed_tokens.weight" || weight == "lm_head.weight";
}

}  // namespace

json::Value Recipe::ToJson() const {
  json::Array list;
  for (const Rule& rule : rules) {
    json::Array patterns;
    for (const Recipe::Pattern& pattern : rule.match) {
      patterns.emplace_back(pattern.text);
    }
    json::Object entry;
    entry.Set("match", std::move(patterns));
    for (auto& [key, value] : JsonOf(rule.plan)) {
      entry.Set(key, std::move(value));
    }
    list.push_back(std::move(entry));
  }
  json::Object out = JsonOf(rest);
  out.Set("modules", std::move(list));
  return out;
}

Result<Recipe> ParseRecipe(std::string_view text, const std::string& source) {
  const auto fail = [&](int line, std::string_view what) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}:{}: {}", source, line, what));
  };
  if (text.size() > kMaxBytes) {
    return fail(1, fmt::format("{} bytes are no recipe (at most {})", text.size(), kMaxBytes));
  }
  try {
    Recipe recipe = ReadRecipe(Load(text), source);
    recipe.text = text;
    return recipe;
  } catch (const Mistake& mistake) {
    return fail(mistake.line, mistake.what);
  } catch (const YAML::DeepRecursion& error) {
    return fail(error.mark.line + 1, "nested too deeply for a recipe");
  } catch (const YAML::Exception& error) {
    const int line = error.mark.line + 1;
    return fail(line, Quote(error.msg) + AdviceFor(text, line));
  }
}

Result<std::map<std::string, ModulePlan, std::less<>>> Resolve(
    const Recipe& recipe, std::span<const ExpectedWeight> weights) {
  std::map<std::string, ModulePlan, std::less<>> plans;
  std::vector<std::string> modules;
  for (const ExpectedWeight& weight : weights) {
    if (weight.is_linear || IsTable(weight.name)) {
      modules.push_back(ModuleOfWeight(weight.name));
    }
    if (weight.is_linear) {
      plans.emplace(weight.name, recipe.rest);
    }
  }
  std::map<std::string, const ModulePlan*, std::less<>> taken;  // by the first rule that matches
  for (const Recipe::Rule& rule : recipe.rules) {
    for (const Recipe::Pattern& text : rule.match) {
      NIBBLE_TRY(pattern, ModulePattern::Compile(text.text));
      const auto refuse = [&](const std::string& what) {
        return Fail(ErrorCode::kInvalidArgument, fmt::format("{}:{}: \"{}\" {}", recipe.source,
                                                             text.line, Quote(text.text), what));
      };
      bool counts = false;
      const ModulePlan* before = nullptr;
      for (const std::string& module : modules) {
        const std::string weight = module + ".weight";
        // "*" means linears: a table is quantized only by its name.
        if (IsTable(weight) ? text.text == module : pattern.Matches(module)) {
          const ModulePlan* by = taken.try_emplace(weight, &rule.plan).first->second;
          counts = counts || by == &rule.plan;
          before = by == &rule.plan ? before : by;
        }
      }
      if (!counts && before != nullptr) {
        return refuse(
            fmt::format("matches only modules that the rule before it takes ({}): put it "
                        "above that one, or take it out",
                        before->where));
      }
      if (!counts) {
        return refuse(fmt::format(
            "matches no module of this model; close to it: {}",
            fmt::join(NearestNames(text.text, WithoutNumbers(modules), kNearNames), ", ")));
      }
    }
  }
  for (const auto& [weight, plan] : taken) {
    plans.insert_or_assign(weight, *plan);
  }
  return plans;
}

}  // namespace nibble
