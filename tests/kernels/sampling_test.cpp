#include "kernels/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/isa.h"

namespace nibble {
namespace {

class ForcedIsa {
 public:
  explicit ForcedIsa(Isa isa) : ok_(ForceIsa(isa)) {}
  ~ForcedIsa() { ForceIsa(DetectIsa()); }
  bool ok() const { return ok_; }

 private:
  bool ok_;
};

std::vector<float> Normal(std::size_t count, std::uint32_t seed, float stddev) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(random); });
  return values;
}

std::vector<SampleResult> RunSample(std::vector<float> logits, std::int64_t vocab_size,
                                    const std::vector<SampleRow>& rows, int num_workers = 2) {
  const std::unique_ptr<Device> device = MakeCpuDevice(num_workers);
  // Full of rubbish: scratch has no state.
  std::vector<std::byte> scratch(SamplingScratchBytes(*device, vocab_size), std::byte{0xa7});
  KernelContext context{
      .device = device.get(), .scratch = scratch.data(), .scratch_bytes = scratch.size()};
  std::vector<SampleResult> results(rows.size());
  Sample(context, logits.data(), vocab_size, vocab_size, rows, results);
  return results;
}

SampleResult RunOne(const std::vector<float>& logits, const SampleRow& row) {
  return RunSample(logits, static_cast<std::int64_t>(logits.size()), {row})[0];
}

/// The contract, step by step, in double precision and with one full sort.
class Reference {
 public:
  Reference(std::vector<float> logits, const SampleRow& row) {
    const auto size = static_cast<std::int32_t>(logits.size());
    const auto inside = [&](TokenId t) { return Raw(t) >= 0 && Raw(t) < size; };
    for (const auto& [token, bias] : row.logit_bias) {
      if (inside(token)) {
        logits[static_cast<std::size_t>(Raw(token))] += bias;
      }
    }
    std::map<std::int32_t, int> outputs;
    std::map<std::int32_t, int> seen;
    for (const TokenId t : row.prompt) {
      if (inside(t)) {
        seen[Raw(t)] = 1;
      }
    }
    for (const TokenId t : row.output) {
      if (inside(t)) {
        seen[Raw(t)] = 1;
        ++outputs[Raw(t)];
      }
    }
    for (const auto& [token, one] : seen) {
      float& x = logits[static_cast<std::size_t>(token)];
      x = x > 0.0F ? x / row.repetition_penalty : x * row.repetition_penalty;
    }
    for (const auto& [token, count] : outputs) {
      float& x = logits[static_cast<std::size_t>(token)];
      x = x - row.frequency_penalty * static_cast<float>(count) - row.presence_penalty;
    }
    for (const TokenId t : row.forbidden) {
      if (inside(t)) {
        logits[static_cast<std::size_t>(Raw(t))] = -INFINITY;
      }
    }
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
      const float x = logits[static_cast<std::size_t>(a)];
      const float y = logits[static_cast<std::size_t>(b)];
      return x != y ? x > y : a < b;
    });
    const double max = static_cast<double>(logits[static_cast<std::size_t>(order_[0])]);
    double total = 0.0;
    for (const float x : logits) {
      total += std::exp(static_cast<double>(x) - max);
    }
    for (const float x : logits) {
      logprobs_.push_back(static_cast<double>(x) - max - std::log(total));
    }
    // Probabilities of what may be drawn.
    kept_.assign(logits.size(), 0.0);
    double sum = 0.0;
    std::vector<std::int32_t> alive;
    for (const std::int32_t t : order_) {
      const double w = std::exp((static_cast<double>(logits[static_cast<std::size_t>(t)]) - max) /
                                static_cast<double>(row.temperature));
      const bool in_top_k = row.top_k <= 0 || std::ssize(alive) < row.top_k;
      if (w >= static_cast<double>(row.min_p) && in_top_k) {
        alive.push_back(t);
        kept_[static_cast<std::size_t>(t)] = w;
        sum += w;
      }
    }
    double before = 0.0;
    double kept_sum = 0.0;
    for (const std::int32_t t : alive) {
      double& w = kept_[static_cast<std::size_t>(t)];
      const double mass = w;
      if (row.top_p < 1.0F && before > 0.0 && before >= static_cast<double>(row.top_p) * sum) {
        w = 0.0;
      }
      before += mass;
      kept_sum += w;
    }
    for (double& w : kept_) {
      w /= kept_sum;
    }
  }

  const std::vector<std::int32_t>& order() const { return order_; }
  const std::vector<double>& logprobs() const { return logprobs_; }
  const std::vector<double>& probabilities() const { return kept_; }

  /// Whether `token` is what the inverse distribution function gives for `uniform`, in the order of
  /// ids or of logits, up to rounding at the edges.
  bool Draws(double uniform, bool by_logit, std::int32_t token) const {
    double sum = 0.0;
    for (std::size_t i = 0; i < kept_.size(); ++i) {
      const auto t = by_logit ? order_[i] : static_cast<std::int32_t>(i);
      const double next = sum + kept_[static_cast<std::size_t>(t)];
      if (t == token) {
        return kept_[static_cast<std::size_t>(t)] > 0.0 && uniform > sum - 2e-6 &&
               uniform < next + 2e-6;
      }
      sum = next;
    }
    return false;
  }

 private:
  std::vector<std::int32_t> order_;
  std::vector<double> logprobs_;
  std::vector<double> kept_;
};

struct Case {
  std::string name;
  SampleRow row;
};

std::vector<TokenId> Tokens(std::vector<int> ids) {
  std::vector<TokenId> tokens;
  for (const int id : ids) {
    tokens.push_back(TokenId{id});
  }
  return tokens;
}

const std::vector<Case>& Cases() {
  static const std::vector<TokenId> prompt = Tokens({3, 5, 3, 17, -4, 1 << 30});
  static const std::vector<TokenId> output = Tokens({5, 8, 8, 8, 2, 1 << 30, -1});
  static const std::vector<TokenId> forbidden = Tokens({1, 4, -7});
  static const std::vector<std::pair<TokenId, float>> bias = {
      {TokenId{9}, 2.5F}, {TokenId{10}, -3.0F}, {TokenId{-2}, 1.0F}, {TokenId{9}, 0.25F}};
  static const std::vector<Case> cases = {
      {"plain", {}},
      {"cold", {.temperature = 0.3F}},
      {"hot", {.temperature = 3.0F}},
      {"top_k", {.top_k = 7}},
      {"top_k of one", {.top_k = 1}},
      {"top_k of many", {.top_k = 300}},
      {"top_p", {.temperature = 0.9F, .top_p = 0.8F}},
      {"top_p tiny", {.top_p = 1e-6F}},
      {"top_p nearly all", {.temperature = 2.0F, .top_p = 0.9999F}},
      {"min_p", {.min_p = 0.08F}},
      {"all three", {.temperature = 1.3F, .top_k = 40, .top_p = 0.85F, .min_p = 0.02F}},
      {"min_p, top_p", {.temperature = 1.5F, .top_p = 0.7F, .min_p = 0.01F}},
      {"penalties",
       {.repetition_penalty = 1.3F,
        .presence_penalty = 0.4F,
        .frequency_penalty = 0.3F,
        .prompt = prompt,
        .output = output}},
      {"everything",
       {.temperature = 1.1F,
        .top_k = 60,
        .top_p = 0.95F,
        .min_p = 0.001F,
        .repetition_penalty = 0.8F,
        .presence_penalty = -0.4F,
        .frequency_penalty = 0.1F,
        .prompt = prompt,
        .output = output,
        .logit_bias = bias,
        .forbidden = forbidden}}};
  return cases;
}

/// Whether the draw goes by falling logit, not by id.
bool Truncates(const SampleRow& row, std::int64_t vocab) {
  return (row.top_k > 0 && row.top_k < vocab) || row.top_p < 1.0F;
}

TEST(Sample, DrawsWhatASortedReferenceDraws) {
  for (const std::int64_t vocab : {20, 64, 65, 1000, 5003}) {
    auto logits = Normal(static_cast<std::size_t>(vocab), 11, 2.5F);
    for (std::size_t i = 0; i < logits.size(); i += 2) {
      logits[i] = std::round(logits[i] * 4.0F) / 4.0F;  // ties
    }
    for (const Case& c : Cases()) {
      const Reference reference(logits, c.row);
      std::vector<SampleRow> rows;
      for (std::uint64_t p = 0; p < 200; ++p) {
        SampleRow row = c.row;
        row.seed = 1234567890123ULL;
        row.choice = static_cast<std::uint32_t>(p % 3);
        row.position = p;
        row.num_top_logprobs = static_cast<std::int32_t>(p % 25);
        rows.push_back(row);
      }
      const auto results = RunSample(logits, vocab, rows);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto uniform =
            static_cast<double>(UniformAt(rows[i].seed, rows[i].choice, rows[i].position));
        const std::int32_t token = Raw(results[i].token);
        EXPECT_TRUE(reference.Draws(uniform, Truncates(c.row, vocab), token))
            << c.name << " vocab " << vocab << " u " << uniform << " token " << token;
        EXPECT_NEAR(static_cast<double>(results[i].logprob),
                    reference.logprobs()[static_cast<std::size_t>(token)], 2e-6);
        const auto count = std::min<std::size_t>(i % 25, static_cast<std::size_t>(vocab));
        ASSERT_EQ(results[i].top.size(), count) << c.name;
        for (std::size_t k = 0; k < count; ++k) {
          ASSERT_EQ(Raw(results[i].top[k].token), reference.order()[k]) << c.name;
          if (std::isfinite(results[i].top[k].logprob)) {
            EXPECT_NEAR(static_cast<double>(results[i].top[k].logprob),
                        reference.logprobs()[static_cast<std::size_t>(reference.order()[k])], 2e-6);
          }
        }
      }
    }
  }
}

TEST(Sample, FrequenciesFitTheDistribution) {
  // Chi-square over 20 000 positions: with f degrees of freedom its mean is f and its standard
  // deviation sqrt(2 f); five of those above is one chance in millions, and the draws are fixed.
  constexpr std::size_t kDraws = 20000;
  const auto logits = Normal(40, 5, 1.5F);
  for (const Case& c : Cases()) {
    const Reference reference(logits, c.row);
    std::vector<SampleRow> rows;
    for (std::size_t p = 0; p < kDraws; ++p) {
      rows.push_back(c.row);
      rows.back().seed = 42;
      rows.back().position = p;
    }
    const auto results = RunSample(logits, 40, rows);
    std::vector<double> counts(40);
    for (const SampleResult& result : results) {
      counts[static_cast<std::size_t>(Raw(result.token))] += 1.0;
    }
    double chi = 0.0;
    double freedom = -1.0;
    double rare_count = 0.0;  // tokens expected fewer than 5 times are taken together
    double rare_expected = 0.0;
    for (std::size_t t = 0; t < 40; ++t) {
      const double expected = reference.probabilities()[t] * static_cast<double>(kDraws);
      if (expected == 0.0) {
        EXPECT_EQ(counts[t], 0.0) << c.name << " token " << t;
      } else if (expected < 5.0) {
        rare_count += counts[t];
        rare_expected += expected;
      } else {
        chi += (counts[t] - expected) * (counts[t] - expected) / expected;
        freedom += 1.0;
      }
    }
    if (rare_expected > 0.0) {
      chi += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
      freedom += 1.0;
    }
    EXPECT_LE(chi, freedom + 5.0 * std::sqrt(2.0 * std::max(freedom, 1.0)) + 1e-9) << c.name;
  }
}

TEST(Sample, EveryIsaAndThreadCountGivesTheSameBits) {
  for (const std::int64_t vocab : {1, 15, 16, 17, 63, 64, 65, 4999}) {
    auto logits = Normal(static_cast<std::size_t>(vocab) * 2, 3, 4.0F);
    logits[static_cast<std::size_t>(vocab) / 2] = NAN;
    logits[static_cast<std::size_t>(vocab)] = INFINITY;  // of the second row
    std::vector<SampleRow> rows;
    for (const Case& c : Cases()) {
      for (std::uint64_t p = 0; p < 12; ++p) {
        SampleRow row = c.row;
        row.seed = 99;
        row.position = p;
        row.logits_row = static_cast<std::int32_t>(p % 2);
        row.num_top_logprobs = static_cast<std::int32_t>(p) - 1;
        row.temperature = p == 5 ? 0.0F : row.temperature;
        row.target = TokenId{p == 7 ? static_cast<std::int32_t>(vocab / 3) : -1};
        rows.push_back(row);
      }
    }
    std::vector<SampleResult> expected;
    for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
      const ForcedIsa forced(isa);
      if (!forced.ok()) {
        GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
        continue;
      }
      for (const int workers : {1, 2, 5}) {
        const auto got = RunSample(logits, vocab, rows, workers);
        if (expected.empty()) {
          expected = got;
        }
        for (std::size_t i = 0; i < rows.size(); ++i) {
          ASSERT_EQ(got[i].token, expected[i].token) << Name(isa) << " row " << i;
          ASSERT_EQ(std::memcmp(&got[i].logprob, &expected[i].logprob, sizeof(float)), 0);
          ASSERT_EQ(got[i].rank, expected[i].rank);
          ASSERT_EQ(got[i].top.size(), expected[i].top.size());
          for (std::size_t k = 0; k < got[i].top.size(); ++k) {
            ASSERT_EQ(got[i].top[k].token, expected[i].top[k].token);
            ASSERT_EQ(std::memcmp(&got[i].top[k].logprob, &expected[i].top[k].logprob, 4), 0);
          }
        }
      }
    }
  }
}

TEST(Sample, GreedyTakesTheLowestIdOfTheLargestLogit) {
  std::vector<float> logits(3000, -1.0F);
  logits[70] = logits[71] = logits[2999] = 4.0F;
  logits[3] = NAN;
  EXPECT_EQ(RunOne(logits, {.temperature = 0.0F}).token, TokenId{70});
  // Temperatures too small to divide by are greedy as well.
  EXPECT_EQ(RunOne(logits, {.temperature = 1e-6F}).token, TokenId{70});
  EXPECT_EQ(RunOne(logits, {.temperature = NAN}).token, TokenId{70});
  const SampleResult result = RunOne(logits, {.temperature = 0.0F, .num_top_logprobs = 3});
  EXPECT_EQ(result.token, TokenId{70});
  EXPECT_EQ(result.rank, 1);
  ASSERT_EQ(result.top.size(), 3U);
  EXPECT_EQ(result.top[1].token, TokenId{71});
  EXPECT_EQ(result.top[2].token, TokenId{2999});
}

TEST(Sample, RowsWithoutAnyFiniteLogitGiveTokenZero) {
  for (const float fill : {NAN, -INFINITY}) {
    const std::vector<float> logits(100, fill);
    for (const float temperature : {0.0F, 1.0F}) {
      for (const float top_p : {0.5F, 1.0F}) {
        const SampleResult result =
            RunOne(logits, {.temperature = temperature, .top_p = top_p, .num_top_logprobs = 2});
        EXPECT_EQ(result.token, TokenId{0});
        EXPECT_EQ(result.logprob, -INFINITY);
        EXPECT_EQ(result.rank, 1);
        ASSERT_EQ(result.top.size(), 2U);
        EXPECT_EQ(result.top[1].token, TokenId{1});
      }
    }
  }
}

TEST(Sample, TargetIsScoredNotSampled) {
  const auto logits = Normal(500, 8, 2.0F);
  const Reference reference(logits, {});
  for (const std::int32_t token : {0, 7, 499}) {
    const SampleResult result =
        RunOne(logits, {.temperature = 0.7F, .num_top_logprobs = 0, .target = TokenId{token}});
    EXPECT_EQ(result.token, TokenId{token});
    EXPECT_NEAR(static_cast<double>(result.logprob),
                reference.logprobs()[static_cast<std::size_t>(token)], 2e-6);
    const auto place = std::find(reference.order().begin(), reference.order().end(), token);
    EXPECT_EQ(result.rank, 1 + (place - reference.order().begin()));
    EXPECT_TRUE(result.top.empty());
  }
}

TEST(Sample, ForbiddenTokensAreNeverSampled) {
  std::vector<float> logits(64, 0.0F);
  logits[5] = 100.0F;
  const auto forbidden = Tokens({5});
  for (std::uint64_t p = 0; p < 200; ++p) {
    EXPECT_NE(RunOne(logits, {.position = p, .forbidden = forbidden}).token, TokenId{5});
  }
  EXPECT_EQ(RunOne(logits, {.temperature = 0.0F, .forbidden = forbidden}).token, TokenId{0});
}

TEST(Sample, ChoicesOfOneRowDoNotSeeEachOthersPenalties) {
  const auto logits = Normal(2000, 21, 1.0F);
  const auto output = Tokens({1, 2, 3, 4, 5, 6});
  std::vector<SampleRow> rows;
  for (std::uint32_t i = 0; i < 64; ++i) {
    SampleRow row{.temperature = 0.0F, .num_top_logprobs = 0};
    if (i % 2 == 1) {
      row.frequency_penalty = 50.0F;
      row.output = output;
    }
    rows.push_back(row);
  }
  const auto results = RunSample(logits, 2000, rows, 5);
  const float clean = RunOne(logits, rows[0]).logprob;
  for (std::size_t i = 0; i < rows.size(); i += 2) {
    EXPECT_EQ(results[i].logprob, clean);
  }
}

}  // namespace
}  // namespace nibble
