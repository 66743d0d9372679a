#include "compress/block_walk.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>

#include "engine/model_runner.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

// What the model runner multiplies, module by module, is what a walk shows.
TEST(BlockWalk, ItsInputsAreThoseOfTheWholeModelToTheBit) {
  for (const char* name : {"qwen3", "llama3", "mistral_window", "gemma3"}) {
    const auto path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / name;
    const auto checkpoint = Checkpoint::Open(path.string());
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    const ModelConfig& config = (*checkpoint)->config();
    constexpr std::int64_t kLength = 24;
    constexpr std::int64_t kWindows = 3;
    std::vector<TokenId> tokens;
    for (std::int64_t i = 0; i < kLength * kWindows; ++i) {
      tokens.push_back(TokenId{static_cast<std::int32_t>((i * 37 + 11) % config.vocab_size)});
    }
    const auto device = MakeCpuDevice(2);
    const auto runner = ModelRunner::Create(**checkpoint,
                                            {.max_num_sequences = 1,
                                             .max_batched_tokens = 64,
                                             .max_model_len = 64,
                                             .activations = ActivationMode::kInt16},
                                            *device, {});
    ASSERT_TRUE(runner) << runner.error().message;
    std::map<std::string, std::vector<float>> expected;
    const LinearObserver observer = [&](std::string_view module, const float* x,
                                        std::int64_t stride, std::int64_t rows,
                                        std::int64_t width) {
      for (std::int64_t row = 0; row < rows; ++row) {
        auto& all = expected[std::string(module)];
        all.insert(all.end(), x + row * stride, x + row * stride + width);
      }
    };
    LlamaModel& model = (*runner)->model();
    const KvCacheSpec spec = model.kv_spec(KvDType::kBF16);
    std::vector<std::byte> memory(4 * spec.BlockBytes());
    std::vector<BlockId> table = {BlockId{0}, BlockId{1}, BlockId{2}, BlockId{3}};
    KvCache cache{.spec = spec, .num_blocks = 4, .data = memory.data()};
    for (std::int64_t window = 0; window < kWindows; ++window) {
      const AttentionSequence sequence{.num_rows = kLength, .block_table = table.data()};
      model.Forward({.token_ids = std::span(tokens).subspan(
                         static_cast<std::size_t>(window * kLength), kLength),
                     .sequences = {&sequence, 1}},
                    cache, &observer);
    }

    const TempFolder folder;
    const bool on_disk = name == std::string_view("llama3");
    const auto walk = BlockWalk::Create(**checkpoint, tokens, kLength, *device,
                                        on_disk ? folder.path() : std::filesystem::path());
    ASSERT_TRUE(walk) << walk.error().message;
    ASSERT_TRUE((*walk)->Embed());
    for (std::int64_t block = 0; block < config.num_layers; ++block) {
      ASSERT_TRUE((*walk)->Begin(block));
      for (const LinearGroup group : kLinearGroups) {
        std::vector<float> seen;
        for (std::int64_t chunk = 0; chunk < (*walk)->num_chunks(); ++chunk) {
          const BlockWalk::Inputs inputs = (*walk)->Advance(group, chunk);
          seen.insert(seen.end(), inputs.floats(),
                      inputs.floats() + inputs.num_rows * inputs.width);
        }
        for (const std::string_view linear : LinearsOf(group)) {
          const std::string weight = WeightName(block, linear);
          EXPECT_EQ(seen, expected[weight.substr(0, weight.rfind('.'))]) << name << " " << weight;
        }
        ASSERT_TRUE((*walk)->Load(group));
      }
      for (std::int64_t chunk = 0; chunk < (*walk)->num_chunks(); ++chunk) {
        (*walk)->End(chunk);
      }
    }
  }
}

}  // namespace
}  // namespace nibble
