#include "eval/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/svg_plot.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

EvaluatedModel Model(const std::string& name, const std::string& result) {
  auto value = json::Parse(result);
  EXPECT_TRUE(value) << value.error().message;
  return {.name = name, .result = *value};
}

TEST(RenderHtml, HasATableAndPlotsOfWhatThereIs) {
  const std::vector<EvaluatedModel> models = {
      Model("int4", R"({"perplexity": 26.2, "nll_stderr": 0.01, "kl_mean": 0.3, "kl_stderr": 0.02,
                        "weight_bytes": 100000000, "bits_per_weight": 4.25,
                        "tasks": {"gsm8k": {"num_items": 3, "data": "test.jsonl", "notes": ["n1"],
                                            "metrics": {"acc": {"value": 0.5, "stderr": null}}}},
                        "layer_errors": {"model.layers.0.mlp.up_proj.weight": 0.1,
                                         "model.layers.1.mlp.up_proj.weight": 0.2,
                                         "lm_head.weight": 9.0}})"),
      Model("bf16", R"({"perplexity": 19.9, "kl_mean": 0.0, "weight_bytes": 270000000})")};
  const std::string html = RenderHtml(models);
  EXPECT_THAT(html, HasSubstr("<td>26.200 <span class=\"error\">&plusmn; 0.262</span></td>"));
  EXPECT_THAT(html, HasSubstr("<td>0.3000 <span class=\"error\">&plusmn; 0.0200</span></td>"));
  EXPECT_THAT(html, HasSubstr("<th>gsm8k acc</th>"));
  EXPECT_THAT(html, HasSubstr("KL mean, nats against the size of the weights"));
  EXPECT_THAT(html, Not(HasSubstr("gsm8k acc against")));  // one model alone has it
  EXPECT_THAT(html, HasSubstr("int4: error of each layer&#39;s weights"));
  EXPECT_THAT(html, HasSubstr("n1"));
}

TEST(RenderHtml, EscapesAllText) {
  const std::string evil = "<script>alert('1')</script>&\"";
  json::Object result;
  result.Set("perplexity", 2.0);
  result.Set("weight_bytes", 5);
  result.Set("text", evil);
  const std::vector<EvaluatedModel> models = {{evil, result}, {evil, result}};
  const std::string html = RenderHtml(models);
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("alert('")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
}

TEST(RenderHtml, NeedsNothingFromElsewhere) {
  const std::vector<EvaluatedModel> models = {Model("m", "{}")};
  const std::string html = RenderHtml(models);
  for (const char* outside : {"http:", "https:", "src=", "href=", "url(", "@import"}) {
    EXPECT_THAT(html, Not(HasSubstr(outside)));
  }
}

TEST(RenderSvg, LeavesOutWhatIsNoNumberAndDrawsOnePointAlone) {
  EXPECT_EQ(RenderSvg({.title = "t", .series = {{.points = {{.x = 1.0, .y = 0.0 / 0.0}}}}}), "");
  const std::string svg = RenderSvg({.title = "t", .series = {{.points = {{.x = 3.0, .y = 0.0}}}}});
  EXPECT_THAT(svg, HasSubstr("<circle"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

}  // namespace
}  // namespace nibble
