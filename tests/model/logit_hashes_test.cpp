// Logits as recorded hashes: the arithmetic of ADR 0002 and 0006 gives the same bits on every ISA
// and on every machine that runs this test, not only on one machine at a time.
#include <fmt/format.h>
#include <gtest/gtest.h>

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

class LogitHashes : public testing::TestWithParam<std::string> {};

TEST_P(LogitHashes, AreTheRecordedOnesOnEveryIsa) {
  const auto file = json::ParseFile(
      (fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/logit_hashes/hashes.json").string());
  ASSERT_TRUE(file) << file.error().message;
  const std::vector<TokenId> ids = ReadExpected(GetParam()).ids;
  const json::Value* model = file->Find(GetParam());
  const Isa best = CurrentIsa();
  for (const Case& c : kCases) {
    Runner runner(GetParam(), 2, c.activations, c.kv_dtype);
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
      RecordProperty(fmt::format("{}.{}", c.name, Name(isa)), found);
      EXPECT_EQ(found, expected) << GetParam() << " " << c.name << " on " << Name(isa);
    }
    ForceIsa(best);
  }
}

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
