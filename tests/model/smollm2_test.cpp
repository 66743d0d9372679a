// The real SmolLM2 against transformers. The model is not in the repository: ./quickstart downloads
// it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "tests/model/golden_runner.h"

namespace nibble {
namespace {

constexpr const char* kModel = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

template <typename T>
std::vector<T> Values(const SafetensorsFile& file, std::string_view name) {
  std::vector<T> out;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (entry.name == name) {
      const TensorView view = file.View(entry);
      out.resize(view.bytes.size() / sizeof(T));
      std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
    }
  }
  return out;
}

// KL over the recorded tokens and all others taken together, which is at most the whole KL, and the
// largest difference among the recorded logits.
TEST(SmolLM2, LogitsEqualTransformers) {
  const fs::path path = fs::path(NIBBLE_SOURCE_DIR) / kModel;
  if (!fs::exists(path)) {
    GTEST_SKIP() << kModel << " is not there: ./quickstart downloads it";
  }
  auto file = SafetensorsFile::Open(fs::path(NIBBLE_SOURCE_DIR) /
                                    "tests/golden/smollm2/expected.safetensors");
  ASSERT_TRUE(file) << file.error().message;
  std::vector<TokenId> ids;
  for (const std::int64_t id : Values<std::int64_t>(**file, "input_ids")) {
    ids.push_back(TokenId{static_cast<std::int32_t>(id)});
  }
  const auto top_ids = Values<std::int64_t>(**file, "top_ids");
  const auto top_logits = Values<float>(**file, "top_logits");
  const auto rest = Values<float>(**file, "rest");
  const float scale = Values<float>(**file, "scale").at(0);
  ASSERT_EQ(rest.size(), ids.size());
  const std::size_t top = top_ids.size() / ids.size();

  Runner runner(path, 2, ActivationMode::kInt16, KvDType::kF32);
  const std::vector<float> found = runner.Logits(ids, 64);
  const auto vocab = found.size() / ids.size();
  double kl = 0.0;
  float worst = 0.0F;
  for (std::size_t row = 0; row < ids.size(); ++row) {
    const std::span<const float> logits(found.data() + row * vocab, vocab);
    double p_all = std::exp(static_cast<double>(rest[row]));
    double q_all = 0.0;
    for (const float logit : logits) {
      q_all += std::exp(static_cast<double>(logit));
    }
    double q_rest = q_all;
    for (std::size_t i = row * top; i < (row + 1) * top; ++i) {
      p_all += std::exp(static_cast<double>(top_logits[i]));
    }
    for (std::size_t i = row * top; i < (row + 1) * top; ++i) {
      const float logit = logits[static_cast<std::size_t>(top_ids[i])];
      const auto p = static_cast<double>(top_logits[i]) - std::log(p_all);
      const auto q = static_cast<double>(logit) - std::log(q_all);
      kl += std::exp(p) * (p - q);
      q_rest -= std::exp(static_cast<double>(logit));
      worst = std::max(worst, std::fabs(logit - top_logits[i]));
    }
    const double p = static_cast<double>(rest[row]) - std::log(p_all);
    kl += std::exp(p) * (p - std::log(q_rest / q_all));
  }
  kl /= static_cast<double>(ids.size());
  RecordProperty("kl", fmt::format("{:.2e}", kl));
  RecordProperty("worst", fmt::format("{:.2e}", worst / scale));
  EXPECT_LE(kl, 1e-5);
  EXPECT_LE(worst, 2e-3F * scale);  // int16 activations move a logit by more than fp32 sums do
}

}  // namespace
}  // namespace nibble
