#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "checkpoint/checkpoint.h"

namespace nibble {
namespace {

struct Loaded {
  std::unique_ptr<Device> device;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<ModelRunner> runner;
};

Loaded Load(const std::string& name, int chunk = 16) {
  Loaded out{.device = MakeCpuDevice(2)};
  const auto path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
  auto checkpoint = Checkpoint::Open(path.string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  out.checkpoint = std::move(*checkpoint);
  auto runner = ModelRunner::Create(
      *out.checkpoint, {.max_num_sequences = 1, .max_batched_tokens = chunk, .max_model_len = 64},
      *out.device);
  EXPECT_TRUE(runner) << runner.error().message;
  out.runner = std::move(*runner);
  return out;
}

std::vector<TokenId> SomeTokens(int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(TokenId{(i * 37 + 11) % 97});
  }
  return tokens;
}

TEST(BeginWindows, PutsGemmasFirstTokenWhereEveryWindowBegins) {
  std::vector<TokenId> tokens = SomeTokens(7);
  ModelConfig config{.bos_token_id = TokenId{2}};
  BeginWindows(config, 3, tokens);
  EXPECT_EQ(tokens, SomeTokens(7));  // llama is measured as it ever was
  config.architecture = Architecture::kGemma3;
  BeginWindows(config, 3, tokens);
  std::vector<TokenId> expected = SomeTokens(7);
  expected[0] = expected[3] = expected[6] = TokenId{2};
  EXPECT_EQ(tokens, expected);
}

TEST(ScoreRow, IsALogSoftmaxAndTakesTheLowestIndexOnTies) {
  const std::vector<float> logits = {1.0F, 3.0F, 3.0F, -2.0F};
  const double norm = std::log(std::exp(1.0) + 2.0 * std::exp(3.0) + std::exp(-2.0));
  EXPECT_NEAR(ScoreRow(logits, TokenId{0}).logprob, 1.0 - norm, 1e-6);
  EXPECT_EQ(ScoreRow(logits, TokenId{0}).argmax, 1);
}

TEST(KlDivergence, MatchesTheSumAndIsZeroForShiftedLogits) {
  const std::vector<float> p = {0.0F, 1.0F, 2.0F};
  const std::vector<float> q = {1.0F, 1.0F, 0.5F};
  double sum_p = 0, sum_q = 0, expected = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    sum_p += std::exp(static_cast<double>(p[i]));
    sum_q += std::exp(static_cast<double>(q[i]));
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const double a = std::exp(static_cast<double>(p[i])) / sum_p;
    expected += a * (std::log(a) - static_cast<double>(q[i]) + std::log(sum_q));
  }
  EXPECT_NEAR(KlDivergence(p, q), expected, 1e-6);
  const std::vector<float> shifted = {5.0F, 6.0F, 7.0F};
  EXPECT_NEAR(KlDivergence(p, shifted), 0.0, 1e-6);
}

TEST(EvaluateText, AModelAgainstItselfHasNoDivergence) {
  const Loaded model = Load("llama3");
  const Loaded same = Load("llama3");
  const auto report =
      EvaluateText(*model.runner, same.runner.get(), SomeTokens(150), {.context = 48});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->num_windows, 3);
  EXPECT_EQ(report->num_tokens, 3 * 47);
  EXPECT_LT(report->kl_mean, 1e-9);
  EXPECT_DOUBLE_EQ(report->top1, 1.0);
  EXPECT_DOUBLE_EQ(report->perplexity, report->reference_perplexity);
  EXPECT_GT(report->perplexity, 1.0);
}

TEST(EvaluateText, ChunksDoNotChangeTheResult) {
  const Loaded whole = Load("qwen3", 64);
  const Loaded cut = Load("qwen3", 7);
  const auto a = EvaluateText(*whole.runner, nullptr, SomeTokens(100), {.context = 50});
  const auto b = EvaluateText(*cut.runner, nullptr, SomeTokens(100), {.context = 50});
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->nll, b->nll);
}

TEST(EvaluateText, QuantizedCheckpointsDivergeFromOthers) {
  const Loaded a = Load("ct_int4_sym_g32");
  const Loaded b = Load("ct_int4_asym_g32");
  const auto report = EvaluateText(*a.runner, b.runner.get(), SomeTokens(64), {.context = 32});
  ASSERT_TRUE(report);
  EXPECT_GT(report->kl_mean, 1e-3);
  EXPECT_GE(report->kl_max, report->kl_p99);
}

TEST(EvaluateText, RefusesATextShorterThanAWindowAndHonoursMaxWindows) {
  const Loaded model = Load("llama2");
  EXPECT_FALSE(EvaluateText(*model.runner, nullptr, SomeTokens(20), {.context = 32}));
  const auto one =
      EvaluateText(*model.runner, nullptr, SomeTokens(128), {.context = 32, .max_windows = 1});
  ASSERT_TRUE(one);
  EXPECT_EQ(one->num_windows, 1);
}

TEST(WindowAt, SlidingWindowsScoreEveryTokenButTheFirstOnce) {
  for (const std::int64_t length : {8, 9, 23, 24, 25}) {
    for (const std::int64_t stride : {1, 3, 8}) {
      const WindowOptions options{.context = 8, .stride = stride};
      const auto tokens = SomeTokens(static_cast<int>(length));
      const auto count = CountWindows(tokens, options, 100);
      ASSERT_TRUE(count) << count.error().message;
      std::vector<int> scored(static_cast<std::size_t>(length), 0);
      for (std::int64_t i = 0; i < *count; ++i) {
        const TextWindow window = WindowAt(i, length, options);
        EXPECT_LE(window.length, 8);
        EXPECT_LE(window.begin + window.length, length);
        for (std::int64_t at = window.first_scored; at < window.length; ++at) {
          ++scored[static_cast<std::size_t>(window.begin + at)];
        }
      }
      // A stride of the whole context leaves nothing before a window's first token.
      const auto skipped = stride == 8 ? *count : 1;
      EXPECT_EQ(std::ranges::count(scored, 0), skipped) << length << " " << stride;
      EXPECT_EQ(std::ranges::count(scored, 1), length - skipped) << length << " " << stride;
    }
  }
  EXPECT_FALSE(CountWindows(SomeTokens(20), {.context = 8, .stride = 9}, 100));
}

TEST(EvaluateText, ASlidingWindowScoresWhatItsLogitsSay) {
  const Loaded model = Load("llama3");
  const auto tokens = SomeTokens(50);
  const auto report = EvaluateText(*model.runner, nullptr, tokens, {.context = 24, .stride = 10});
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->num_windows, 4);  // 0-24, 10-34, 20-44, 30-50
  EXPECT_EQ(report->num_tokens, 49);
  double nll = 0.0;
  for (std::size_t target = 1; target < tokens.size(); ++target) {
    const std::size_t begin = target < 24 ? 0 : (target - 24) / 10 * 10 + 10;
    const auto visit = [&](std::int64_t first, std::int64_t rows) -> Result<void> {
      const auto row = static_cast<std::int64_t>(target - begin) - 1 - first;
      if (row >= 0 && row < rows) {
        NIBBLE_TRY(logits, model.runner->ChunkLogits(row, 1));
        nll -=
            ScoreRow({logits, static_cast<std::size_t>(model.runner->vocab_size())}, tokens[target])
                .logprob;
      }
      return {};
    };
    ASSERT_TRUE(model.runner->RunWindow(
        std::span(tokens).subspan(begin, std::min<std::size_t>(24, tokens.size() - begin)), visit));
  }
  EXPECT_NEAR(report->nll, nll / 49, 1e-9);
}

TEST(QualityMeter, ErrorsAreOverWindows) {
  // Two tokens; the model knows nothing, the reference is sure of one or the other.
  const std::vector<float> model = {0.0F, 0.0F, 0.0F, 0.0F};
  const std::vector<float> reference = {20.0F, 0.0F, 0.0F, 20.0F};
  const auto device = MakeCpuDevice(1);
  QualityMeter meter;
  for (const int rows : {1, 2, 1}) {  // windows: right, right and wrong, right
    meter.Add(device->pool(), model.data(), reference.data(), 2,
              std::vector(static_cast<std::size_t>(rows), TokenId{0}));
    meter.EndWindow();
  }
  const QualityReport report = meter.Report();
  EXPECT_EQ(report.num_tokens, 4);
  EXPECT_DOUBLE_EQ(report.top1, 0.75);
  // Deviations times positions: 0.25, -0.5, 0.25.
  EXPECT_DOUBLE_EQ(report.top1_stderr, std::sqrt(0.375 * 3.0 / 2.0) / 4.0);
  EXPECT_NEAR(report.nll, std::log(2.0), 1e-7);
  EXPECT_NEAR(report.nll_stderr, 0.0, 1e-9);
}

TEST(EvaluateText, StopsWhenToldTo) {
  const Loaded model = Load("llama2");
  const auto stopped = EvaluateText(*model.runner, nullptr, SomeTokens(128), {.context = 32},
                                    [](std::int64_t, std::int64_t, double) { return false; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
}

}  // namespace
}  // namespace nibble
