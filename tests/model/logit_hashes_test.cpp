// Logits as recorded hashes: the arithmetic of ADR 0002 and 0006 gives the same bits on every ISA
// and on every machine that runs this test, not only on one machine at a time.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "json/value.h"
#include "kernels/isa.h"
#include "tests/model/golden_runner.h"

namespace nibble {
namespace {

struct Case {
  const char* name;
  ActivationMode activations;
  KvDType kv_dtype;
};

constexpr Case kCases[] = {
    {"int16_kv_bfloat16", ActivationMode::kInt16, KvDType::kBF16},
    {"int16_kv_int8", ActivationMode::kInt16, KvDType::kInt8},
    {"int16_kv_float32", ActivationMode::kInt16, KvDType::kF32},
    {"int8_kv_bfloat16", ActivationMode::kInt8, KvDType::kBF16},
};

// The logits of `ids` have the hashes recorded for `name`.
void ExpectRecorded(const std::string& name, const fs::path& path,
                    const std::vector<TokenId>& ids) {
  const auto file = json::ParseFile(
      (fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/logit_hashes/hashes.json").string());
  ASSERT_TRUE(file) << file.error().message;
  const json::Value* model = file->Find(name);
  const Isa best = CurrentIsa();
  for (const Case& c : kCases) {
    Runner runner(path, 2, c.activations, c.kv_dtype);
    const json::Value* recorded = model != nullptr ? model->Find(c.name) : nullptr;
    const std::string expected =
        recorded != nullptr && recorded->IsString() ? *recorded->AsString() : "nothing recorded";
    for (const Isa isa : {Isa::kRef, Isa::kAvx2, Isa::kAvx512}) {
      if (!ForceIsa(isa)) {
        GTEST_LOG_(INFO) << "skipped: no " << Name(isa) << " on this machine";
        continue;
      }
      const std::vector<float> logits = runner.Logits(ids, 64);
      const std::string found = Sha256Hex(std::as_bytes(std::span(logits)));
      // What tools/golden/make_logit_hashes.py collects.
      testing::Test::RecordProperty(fmt::format("{}.{}", c.name, Name(isa)), found);
      EXPECT_EQ(found, expected) << name << " " << c.name << " on " << Name(isa);
    }
    ForceIsa(best);
  }
}

class LogitHashes : public testing::TestWithParam<std::string> {};

TEST_P(LogitHashes, AreTheRecordedOnesOnEveryIsa) {
  ExpectRecorded(GetParam(), Golden() / GetParam(), ReadExpected(GetParam()).ids);
}

// GGUF blocks, whose 4-bit codes have minima or a scale for 32 columns. Tiny ones are in the corpus
// of the fuzz target.
class GgufLogitHashes : public testing::TestWithParam<std::string> {};

TEST_P(GgufLogitHashes, AreTheRecordedOnesOnEveryIsa) {
  const fs::path path =
      fs::path(testing::TempDir()) / fmt::format("{}_{}.gguf", GetParam(), getpid());
  fs::copy_file(fs::path(NIBBLE_SOURCE_DIR) / "fuzz/corpus/gguf" / GetParam(), path,
                fs::copy_options::overwrite_existing);
  std::vector<TokenId> ids(24);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = TokenId{static_cast<std::int32_t>(i * 7 / 3 % 4)};
  }
  ExpectRecorded(GetParam(), path, ids);
  fs::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Blocks, GgufLogitHashes,
                         testing::Values("llama_q4_0", "llama_q4_1", "llama_q8_0"),
                         [](const auto& param) { return param.param; });

std::vector<std::string> GoldenModels() {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(Golden())) {
    if (entry.is_directory()) {
      names.insert(entry.path().filename().string());
    }
  }
  return {names.begin(), names.end()};
}

INSTANTIATE_TEST_SUITE_P(Models, LogitHashes, testing::ValuesIn(GoldenModels()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace nibble
