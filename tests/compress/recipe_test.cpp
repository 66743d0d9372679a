#include "compress/recipe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "compress/module_names.h"
#include "compress/quantize.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::vector<ExpectedWeight> Weights() {
  std::vector<ExpectedWeight> out = {{"model.embed_tokens.weight", 100, 64}};
  for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
    out.push_back({block + "input_layernorm.weight", 1, 64});
    for (const char* linear : {"self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"}) {
      out.push_back({block + linear + ".weight", 64, 64, true});
    }
  }
  out.push_back({"lm_head.weight", 100, 64});
  return out;
}

Recipe Parsed(std::string_view text) {
  auto recipe = ParseRecipe(text, "r.yaml");
  EXPECT_TRUE(recipe) << recipe.error().message;
  return recipe ? *std::move(recipe) : Recipe{};
}

// The message of a recipe that is refused, by the parser or by the model.
std::string Complaint(std::string_view text) {
  auto recipe = ParseRecipe(text, "r.yaml");
  if (recipe) {
    const auto plans = Resolve(*recipe, Weights());
    return plans ? "taken" : plans.error().message;
  }
  EXPECT_EQ(recipe.error().code, ErrorCode::kInvalidArgument);
  return recipe.error().message;
}

TEST(Recipe, TheFirstRuleThatMatchesCounts) {
  const Recipe recipe = Parsed(
      "method: gptq\n"
      "scheme: int3\n"
      "group_size: 32\n"
      "modules:\n"
      "  - match: model.layers.1.mlp.*\n"
      "    skip: true\n"
      "  - match: ['*.mlp.*', 're:model\\.layers\\.\\d+\\.self_attn\\.q']\n"
      "    bits: 8\n"
      "    group_size: 0\n"
      "    method: rtn\n"
      "  - match: lm_head\n"
      "    bits: 8\n");
  const auto plans = Resolve(recipe, Weights());
  ASSERT_TRUE(plans) << plans.error().message;
  const auto at = [&](const char* weight) { return plans->at(weight); };
  EXPECT_TRUE(at("model.layers.1.mlp.up_proj.weight").scheme.keeps_floats);
  EXPECT_EQ(at("model.layers.0.mlp.up_proj.weight").scheme, (Scheme{.bits = 8, .group_size = 0}));
  EXPECT_EQ(at("model.layers.0.mlp.up_proj.weight").method, QuantizeMethod::kRtn);
  EXPECT_EQ(at("model.layers.1.self_attn.q_proj.weight").scheme.bits, 8);
  // Nothing but its name means a table, and what no rule names is as the top says.
  EXPECT_EQ(at("lm_head.weight").scheme.bits, 8);
  EXPECT_EQ(plans->count("model.embed_tokens.weight"), 0U);
  EXPECT_EQ(plans->count("model.layers.0.input_layernorm.weight"), 0U);
  EXPECT_EQ(at("model.layers.0.self_attn.o_proj.weight").scheme,
            (Scheme{.bits = 3, .group_size = 32}));
  EXPECT_EQ(at("model.layers.0.self_attn.o_proj.weight").method, QuantizeMethod::kGptq);
}

TEST(Recipe, EveryComplaintNamesItsLineAndTheWayOut) {
  const struct {
    const char* text;
    std::vector<const char*> says;
  } kCases[] = {
      {"", {"r.yaml:1:", "mapping"}},
      {"scheme: int4\nmodules: {}\n", {"r.yaml:2:", "list of rules"}},
      {"scheme: int4\nshceme: int8\n", {"r.yaml:2:", "\"shceme\"", "did you mean scheme"}},
      {"scheme: int4\nscheme: int8\n", {"r.yaml:2:", "twice"}},
      {"\n\nscheme: itn4\n", {"r.yaml:3:", "\"itn4\"", "int4"}},
      {"scheme: int4\nbits: 4\n", {"r.yaml:2:", "keep one"}},
      {"bits: 7\n", {"r.yaml:1:", "bits takes 2, 3, 4, 5, 6 or 8, not 7"}},
      {"bits: four\n", {"r.yaml:1:", "bits takes 2, 3, 4, 5, 6 or 8, not four"}},
      {"bits: [4]\n", {"r.yaml:1:", "bits takes 2, 3, 4, 5, 6 or 8"}},
      // What has no value stands where its key does, not where the next word is.
      {"scheme: int4\nbits:\n\n\ngroup_size: 32\n", {"r.yaml:2:", "bits has no value"}},
      {"scheme: int4\nmodules:\n", {"r.yaml:2:", "modules has no value"}},
      {"modules:\n  - match:\n    bits: 3\n", {"r.yaml:2:", "match has no value"}},
      {"modules:\n  - match: ['*.up_proj', ~]\n", {"r.yaml:2:", "match has an empty line"}},
      {"modules:\n  -\n  - match: '*'\n", {"r.yaml:2:", "rule 1 is empty"}},
      {"modules:\n  - match: []\n    bits: 3\n", {"r.yaml:2:", "match has no pattern"}},
      {"modules:\n  - match:\n      - '*.up_proj'\n      - '*.up_prj'\n",
       {"r.yaml:4:", "\"*.up_prj\" matches no module"}},
      // One pattern twice, and one that is never reached.
      {"modules:\n  - match: '*.q_proj'\n    bits: 8\n  - match: '*.q_proj'\n    bits: 3\n",
       {"r.yaml:4:", "\"*.q_proj\" matches only modules", "(r.yaml:2)", "above"}},
      {"modules:\n  - match: '*'\n    bits: 8\n  - match:\n      - '*.mlp.*'\n    bits: 3\n",
       {"r.yaml:5:", "\"*.mlp.*\" matches only modules", "(r.yaml:2)"}},
      {"scheme: int4\n---\nscheme: int8\n", {"r.yaml:3:", "second document"}},
      {"scheme: int4\nmodules:\n\t- match: '*'\n", {"r.yaml:3:", "tab", "spaces"}},
      {"modules:\n  - &a {match: '*.q_proj'}\n  - <<: *a\n", {"r.yaml:3:", "merge keys"}},
      {"modules:\n  - {match: '*', skip: true, group_size: 32}\n",
       {"r.yaml:2:", "leave out group_size"}},
      {"group_size: -1\n", {"r.yaml:1:", "group_size takes"}},
      {"scheme: nf4\ngroup_size: 32\n", {"r.yaml:2:", "settles group_size itself"}},
      {"symmetric: perhaps\n", {"r.yaml:1:", "true or false"}},
      {"method: magic\n", {"r.yaml:1:", "\"magic\"", "awq+gptq"}},
      {"modules:\n  - bits: 4\n", {"r.yaml:2:", "match"}},
      {"modules:\n  - match: 're:('\n", {"r.yaml:2:", "no regular expression"}},
      {"modules:\n  - match: '*'\n    method: awq\n", {"r.yaml:3:", "as a whole"}},
      {"modules:\n  - match: '*'\n    skip: true\n    bits: 4\n", {"r.yaml:4:", "leave out bits"}},
      {"modules:\n  - match: '*'\n   bits: 4\n", {"r.yaml:3:"}},
      {"modules: [1, 2\n", {"r.yaml:2:"}},
      {"scheme: int4\nmodules:\n  - match: '*.mlp.up_prj'\n    bits: 4\n",
       {"r.yaml:3:", "\"*.mlp.up_prj\" matches no module",
        "close to it: model.layers.*.mlp.up_proj"}},
      {"modules:\n  - match: 're:.*\\.self_att\\..*'\n    bits: 4\n",
       {"r.yaml:2:", "close to it: model.layers.*.self_attn."}},
  };
  for (const auto& one : kCases) {
    const std::string complaint = Complaint(one.text);
    for (const char* word : one.says) {
      EXPECT_NE(complaint.find(word), std::string::npos) << one.text << "\n-> " << complaint;
    }
  }
}

TEST(Recipe, PatternsOfOneRuleMayOverlapAndAliasesAreRead) {
  EXPECT_EQ(Complaint("modules:\n  - match: ['*.q_proj', '*.self_attn.*', '*.q_proj']\n"), "taken");
  const Recipe recipe = Parsed(
      "modules:\n  - {match: '*.q_proj', bits: &eight 8}\n  - {match: '*.o_proj', bits: *eight}\n");
  const auto plans = Resolve(recipe, Weights());
  ASSERT_TRUE(plans) << plans.error().message;
  EXPECT_EQ(plans->at("model.layers.0.self_attn.o_proj.weight").scheme.bits, 8);
}

TEST(Recipe, ADeepOrLargeDocumentIsAnErrorNotACrash) {
  EXPECT_NE(Complaint(std::string(100'000, '[')).find("r.yaml:1: nested too deeply"),
            std::string::npos);
  EXPECT_EQ(Complaint("a: \"\\\x1b\"\n").find('\x1b'), std::string::npos) << "no foreign bytes";
  EXPECT_NE(Complaint(std::string((1 << 20) + 1, ' ')).find("no recipe"), std::string::npos);
  std::string bomb = "a: &a [x, x]\n";
  EXPECT_NE(Complaint(bomb).find("\"a\" is no key"), std::string::npos);
}

TEST(ModulePattern, StarsCrossDotsAndExpressionsMatchFromTheStart) {
  const auto matches = [](const char* pattern, const char* module) {
    return ModulePattern::Compile(pattern)->Matches(module);
  };
  EXPECT_TRUE(matches("*", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(matches("model.*.up_proj", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(matches("model.layers.?.mlp.*", "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(matches("model.layers.?.mlp.*", "model.layers.10.mlp.up_proj"));
  EXPECT_FALSE(matches("mlp.*", "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(matches("*.mlp", "model.layers.0.mlp.up_proj"));
  EXPECT_TRUE(matches("re:model\\.layers", "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(matches("re:layers", "model.layers.0.mlp.up_proj"));
  EXPECT_FALSE(ModulePattern::Compile("re:["));
}

TEST(SchemeWords, ComeBack) {
  for (const std::string& word : SchemeWords()) {
    const auto scheme = ParseScheme(word);
    ASSERT_TRUE(scheme) << word;
    EXPECT_EQ(WordOf(*scheme), word);
  }
  EXPECT_FALSE(ParseScheme("int7"));
}

}  // namespace
}  // namespace nibble
