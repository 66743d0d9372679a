#include "compress/block_gradient.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace nibble {
namespace {

constexpr std::int64_t kLength = 150;  // more than one tile of queries
constexpr std::int64_t kWindows = 2;

struct Case {
  const char* name;
  bool qk_norm = false;
  bool biases = false;
  std::optional<std::int64_t> sliding_window;
};

std::vector<float> Normal(std::int64_t count, float stddev, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, stddev);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

class Fixture {
 public:
  explicit Fixture(const Case& test, int num_threads = 2) : pool_(num_threads) {
    config_.hidden_size = 24;
    config_.intermediate_size = 40;
    config_.num_heads = 4;
    config_.num_kv_heads = 2;
    config_.head_dim = 8;
    config_.qk_norm = test.qk_norm;
    config_.sliding_window = test.sliding_window;
    BlockVectors vectors;
    vectors.input_norm = Around1(24, 1);
    vectors.post_attention_norm = Around1(24, 2);
    if (test.qk_norm) {
      vectors.q_norm = Around1(8, 3);
      vectors.k_norm = Around1(8, 4);
    }
    BlockGradient sizes(config_, vectors, kLength, kWindows, pool_);
    for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
      const auto linear = static_cast<BlockLinear>(i);
      const std::int64_t in = sizes.InFeatures(linear), out = sizes.OutFeatures(linear);
      weights_[i] = Normal(in * out, 1.0F / std::sqrt(static_cast<float>(in)),
                           10 + static_cast<std::uint32_t>(i));
      if (test.biases) {
        vectors.bias[i] = Normal(out, 0.3F, 20 + static_cast<std::uint32_t>(i));
      }
    }
    x_ = Normal(kWindows * kLength * 24, 1.0F, 30);
    slope_ = Normal(kWindows * kLength * 24, 1.0F, 31);
    block_.emplace(config_, vectors, kLength, kWindows, pool_);
  }

  std::vector<float> Output() {
    std::vector<float> out(x_.size());
    block_->Forward(Pointers(), x_.data(), kWindows, out.data());
    return out;
  }
  // sum of slope * out
  double Loss() {
    const std::vector<float> out = Output();
    double sum = 0.0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      sum += static_cast<double>(out[i]) * static_cast<double>(slope_[i]);
    }
    return sum;
  }
  std::array<std::vector<float>, kNumBlockLinears> Gradients() {
    Output();
    std::array<std::vector<float>, kNumBlockLinears> gradients;
    BlockGradient::Gradients to;
    for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
      gradients[i].resize(weights_[i].size());
      to[i] = gradients[i].data();
    }
    block_->Backward(Pointers(), slope_.data(), to);
    return gradients;
  }

  std::array<std::vector<float>, kNumBlockLinears> weights_;

 private:
  static std::vector<float> Around1(std::int64_t count, std::uint32_t seed) {
    std::vector<float> values = Normal(count, 0.2F, seed);
    for (float& value : values) {
      value += 1.0F;
    }
    return values;
  }
  BlockGradient::Weights Pointers() const {
    BlockGradient::Weights pointers;
    for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
      pointers[i] = weights_[i].data();
    }
    return pointers;
  }

  ThreadPool pool_;
  ModelConfig config_;
  std::vector<float> x_, slope_;
  std::optional<BlockGradient> block_;
};

class BlockGradientOf : public testing::TestWithParam<Case> {};

// Along a random direction of each matrix, by central differences; their own error is of order
// step^2 and rounding / step.
TEST_P(BlockGradientOf, IsTheSlopeOfFiniteDifferences) {
  Fixture fixture(GetParam());
  const auto gradients = fixture.Gradients();
  for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
    SCOPED_TRACE(i);
    constexpr float kStep = 2e-3F;
    const std::vector<float> direction = Normal(static_cast<std::int64_t>(gradients[i].size()),
                                                1.0F, 40 + static_cast<std::uint32_t>(i));
    double expected = 0.0, length = 0.0;
    for (std::size_t j = 0; j < direction.size(); ++j) {
      const auto g = static_cast<double>(gradients[i][j]);
      expected += g * static_cast<double>(direction[j]);
      length += g * g;
    }
    const std::vector<float> original = fixture.weights_[i];
    const auto loss = [&](float step) {
      for (std::size_t j = 0; j < direction.size(); ++j) {
        fixture.weights_[i][j] = original[j] + step * direction[j];
      }
      return fixture.Loss();
    };
    const double slope = (loss(kStep) - loss(-kStep)) / (2.0 * static_cast<double>(kStep));
    fixture.weights_[i] = original;
    ASSERT_GT(length, 0.0);
    EXPECT_NEAR(slope, expected, 5e-3 * std::sqrt(length));
  }
}

TEST_P(BlockGradientOf, DoesNotDependOnTheNumberOfThreads) {
  EXPECT_EQ(Fixture(GetParam(), 1).Gradients(), Fixture(GetParam(), 3).Gradients());
}

INSTANTIATE_TEST_SUITE_P(Blocks, BlockGradientOf,
                         testing::Values(Case{.name = "Llama"},
                                         Case{.name = "Qwen3", .qk_norm = true},
                                         Case{.name = "Biases", .biases = true},
                                         Case{.name = "Window", .sliding_window = 37}),
                         [](const auto& test) { return std::string(test.param.name); });

// One file of tests/golden/block_gradient.
class Golden {
 public:
  explicit Golden(const std::string& name) {
    auto file = SafetensorsFile::Open(std::filesystem::path(NIBBLE_SOURCE_DIR) /
                                      "tests/golden/block_gradient" / (name + ".safetensors"));
    EXPECT_TRUE(file) << file.error().message;
    file_ = std::move(*file);
  }
  // Empty if there is none.
  std::vector<float> Read(const std::string& name) const {
    for (const SafetensorsEntry& entry : file_->entries()) {
      if (entry.name == name) {
        const auto* data = reinterpret_cast<const float*>(file_->View(entry).bytes.data());
        return {data, data + entry.shape.num_elements()};
      }
    }
    return {};
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
};

constexpr const char* kNames[kNumBlockLinears] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

// |a - b| / |b|
double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0.0, length = 0.0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    length += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / length);
}

class BlockGradientGolden : public testing::TestWithParam<Case> {};

TEST_P(BlockGradientGolden, IsThatOfAutograd) {
  constexpr std::int64_t kGoldenLength = 24;
  const Golden golden(GetParam().name);
  ModelConfig config;
  config.hidden_size = 24;
  config.intermediate_size = 40;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.qk_norm = GetParam().qk_norm;
  config.sliding_window = GetParam().sliding_window;
  BlockVectors vectors{.input_norm = golden.Read("input_layernorm.weight"),
                       .post_attention_norm = golden.Read("post_attention_layernorm.weight"),
                       .q_norm = golden.Read("self_attn.q_norm.weight"),
                       .k_norm = golden.Read("self_attn.k_norm.weight")};
  std::array<std::vector<float>, kNumBlockLinears> weights, gradients;
  BlockGradient::Weights from;
  BlockGradient::Gradients to;
  for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
    const std::string name = kNames[i];
    vectors.bias[i] = golden.Read(name + ".bias");
    ASSERT_EQ(vectors.bias[i].empty(), !GetParam().biases);
    weights[i] = golden.Read(name + ".weight");
    gradients[i].resize(weights[i].size());
    from[i] = weights[i].data();
    to[i] = gradients[i].data();
  }
  ThreadPool pool(2);
  BlockGradient block(config, vectors, kGoldenLength, kWindows, pool);
  const std::vector<float> x = golden.Read("x"), slope = golden.Read("slope");
  std::vector<float> out(x.size());
  block.Forward(from, x.data(), kWindows, out.data());
  EXPECT_LT(Distance(out, golden.Read("out")), 1e-6);
  block.Backward(from, slope.data(), to);
  for (std::size_t i = 0; i < kNumBlockLinears; ++i) {
    EXPECT_LT(Distance(gradients[i], golden.Read(std::string("gradient.") + kNames[i] + ".weight")),
              1e-5)
        << kNames[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Blocks, BlockGradientGolden,
                         testing::Values(Case{.name = "llama", .biases = true},
                                         Case{.name = "mistral", .sliding_window = 9},
                                         Case{.name = "qwen3", .qk_norm = true}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace nibble
