#include "eval/task_runner.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>

#include "checkpoint/checkpoint.h"
#include "eval/metric.h"
#include "eval/perplexity.h"

namespace nibble {
namespace {

constexpr const char* kModel = "llama3";

struct Loaded {
  std::unique_ptr<Device> device;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ModelRunner> runner;
  std::unique_ptr<Engine> engine;
};

Loaded Load(bool prefix_caching = true) {
  Loaded out{.device = MakeCpuDevice(2)};
  const auto path = std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/models" / kModel;
  out.checkpoint = *Checkpoint::Open(path.string());
  out.tokenizer = *Tokenizer::FromFolder(path.string());
  out.runner = *ModelRunner::Create(*out.checkpoint,
                                    {.max_num_sequences = 8,
                                     .max_batched_tokens = 48,
                                     .max_model_len = 200,
                                     .num_blocks_override = 60},
                                    *out.device);
  out.engine = *Engine::Create({.max_num_sequences = 8,
                                .max_batched_tokens = 48,
                                .max_model_len = 200,
                                .block_size_tokens = out.runner->block_size_tokens(),
                                .num_blocks = static_cast<std::int32_t>(out.runner->num_blocks()),
                                .enable_prefix_caching = prefix_caching,
                                .vocab_size = out.checkpoint->config().vocab_size},
                               *out.runner, out.tokenizer.get(), SystemClock());
  return out;
}

// Items that share a beginning, with three choices each of which two begin alike.
Task SomeTask() {
  Task task{.name = "some"};
  for (int i = 0; i < 12; ++i) {
    TaskItem item{.id = fmt::format("{}", i), .answer = i % 3};
    const std::string context =
        fmt::format("The following are questions about numbers and things. {} is what? Answer:", i);
    for (const char* choice : {" a red house", " a red hat", " 7"}) {
      item.requests.push_back({.context = context, .continuation = choice});
    }
    task.items.push_back(std::move(item));
  }
  task.value_names = {"best"};
  task.score = [](const TaskItem&,
                  std::span<const RequestResult> results) -> Result<std::vector<double>> {
    return std::vector{results[0].logprob};
  };
  task.metrics = {MeanMetric("best", 0)};
  return task;
}

std::vector<std::size_t> All(const Task& task) {
  std::vector<std::size_t> all(task.items.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  return all;
}

std::vector<ItemRecord> RunItems(Loaded& model, const Task& task,
                                 const std::vector<EncodedItem>& items,
                                 const std::vector<std::size_t>& todo) {
  std::vector<ItemRecord> records(task.items.size());
  const auto run = RunTask(
      *model.engine, task, items, todo, {.on_item = [&](std::size_t item, ItemRecord record) {
        EXPECT_TRUE(records[item].results.empty()) << "item " << item << " twice";
        records[item] = std::move(record);
        return Result<void>{};
      }});
  EXPECT_TRUE(run) << run.error().message;
  return records;
}

// The same from the logits themselves, one sequence after the other.
RequestResult Direct(Loaded& model, const EncodedRequest& request) {
  RequestResult out{.is_greedy = true};
  const std::span<const TokenId> tokens = request.tokens;
  const auto visit = [&](std::int64_t first, std::int64_t rows) -> Result<void> {
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t next = first + row + 1;
      if (next < request.first_scored || next >= std::ssize(tokens)) {
        continue;
      }
      NIBBLE_TRY(logits, model.runner->ChunkLogits(row, 1));
      const TokenId target = tokens[static_cast<std::size_t>(next)];
      const RowScore score =
          ScoreRow({logits, static_cast<std::size_t>(model.runner->vocab_size())}, target);
      out.logprob += score.logprob;
      out.is_greedy = out.is_greedy && score.argmax == Raw(target);
      ++out.num_tokens;
    }
    return {};
  };
  EXPECT_TRUE(model.runner->RunWindow(tokens, visit));
  return out;
}

TEST(TaskRunner, ScoresEqualThoseOfTheLogitsWithAndWithoutThePrefixCache) {
  const Task task = SomeTask();
  Loaded model = Load();
  const auto items = EncodeItems(task, *model.tokenizer, {.max_positions = 200});
  ASSERT_TRUE(items) << items.error().message;
  const auto records = RunItems(model, task, *items, All(task));
  EXPECT_GT(model.engine->Stats().prefix_cache_hits, 1000U);
  Loaded plain = Load(/*prefix_caching=*/false);
  const auto without = RunItems(plain, task, *items, All(task));
  for (std::size_t i = 0; i < records.size(); ++i) {
    ASSERT_EQ(records[i].results.size(), 3U);
    for (std::size_t r = 0; r < 3; ++r) {
      const RequestResult& result = records[i].results[r];
      EXPECT_EQ(result.logprob, without[i].results[r].logprob);
      const RequestResult expected = Direct(plain, (*items)[i][r]);
      EXPECT_NEAR(result.logprob, expected.logprob, 1e-4);
      EXPECT_EQ(result.is_greedy, expected.is_greedy);
      EXPECT_EQ(result.num_tokens, expected.num_tokens);
    }
    EXPECT_EQ(records[i].values, std::vector{records[i].results[0].logprob});
  }
}

TEST(TaskRunner, AStoppedRunLeavesAnIdleEngineAndTheRestCanBeRun) {
  const Task task = SomeTask();
  Loaded model = Load();
  const auto items = EncodeItems(task, *model.tokenizer, {.max_positions = 200});
  ASSERT_TRUE(items);
  const auto whole = RunItems(model, task, *items, All(task));
  std::vector<std::size_t> rest = All(task);
  const auto stopped = RunTask(*model.engine, task, *items, All(task),
                               {.on_item =
                                    [&](std::size_t item, ItemRecord record) {
                                      EXPECT_EQ(record.values, whole[item].values);
                                      std::erase(rest, item);
                                      return Result<void>{};
                                    },
                                .on_progress =
                                    [](const TaskProgress& progress) {
                                      EXPECT_LE(progress.done_tokens, progress.num_tokens);
                                      return progress.done_items < 4;
                                    }});
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(model.engine->idle());
  EXPECT_EQ(model.engine->Stats().num_blocks_held, 0);
  EXPECT_LE(rest.size(), 8U);
  EXPECT_GT(rest.size(), 0U);
  const auto records = RunItems(model, task, *items, rest);
  for (const std::size_t item : rest) {
    EXPECT_EQ(records[item].values, whole[item].values);
  }
}

TEST(TaskRunner, GeneratesUntilAStopString) {
  Task task{.name = "go on", .kind = RequestKind::kGenerate};
  task.items = {{.id = "0", .requests = {{.context = "Once upon", .max_tokens = 12}}}};
  task.score = [](const TaskItem&, std::span<const RequestResult>) {
    return Result<std::vector<double>>(std::vector<double>{});
  };
  Loaded model = Load();
  const auto items = EncodeItems(task, *model.tokenizer, {.max_positions = 200});
  ASSERT_TRUE(items) << items.error().message;
  EXPECT_EQ(MaxPositions(task, *items), std::ssize((*items)[0][0].tokens) + 12);
  const RequestResult whole = RunItems(model, task, *items, {0})[0].results[0];
  EXPECT_EQ(whole.num_tokens, 12);
  ASSERT_GE(whole.text.size(), 3U);
  task.items[0].requests[0].stop = {whole.text.substr(2, 1)};
  const RequestResult cut = RunItems(model, task, *items, {0})[0].results[0];
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(whole.text.substr(2, 1))));
}

TEST(EncodeItems, BlanksBeforeTheContinuationBelongToIt) {
  const Loaded model = Load();
  Task task{.name = "t"};
  task.items = {{.id = "0", .requests = {{.context = "A word \n", .continuation = " more"}}},
                {.id = "1", .requests = {{.context = "A word", .continuation = " \n more"}}},
                {.id = "2", .requests = {{.context = "", .continuation = " more"}}}};
  const auto items = EncodeItems(task, *model.tokenizer, {.max_positions = 200});
  ASSERT_TRUE(items) << items.error().message;
  const auto context = model.tokenizer->Encode("A word");
  EXPECT_EQ((*items)[0][0].tokens, model.tokenizer->Encode("A word \n more"));
  EXPECT_EQ((*items)[0][0].first_scored, std::ssize(context));
  EXPECT_EQ((*items)[1][0].tokens, (*items)[0][0].tokens);
  EXPECT_EQ((*items)[1][0].first_scored, std::ssize(context));
  // Nothing before it: the token that begins a text, here its end token.
  const auto start = model.tokenizer->bos() ? model.tokenizer->bos() : model.tokenizer->eos();
  ASSERT_TRUE(start);
  EXPECT_EQ((*items)[2][0].tokens.front(), *start);
  EXPECT_EQ((*items)[2][0].first_scored, 1);
}

TEST(EncodeItems, WhatIsTooLongLosesItsBeginningOrIsRefused) {
  const Loaded model = Load();
  Task task{.name = "t"};
  task.items = {
      {.id = "0",
       .requests = {{.context = "A few words that come before", .continuation = " more"}}}};
  const auto whole = EncodeItems(task, *model.tokenizer, {.max_positions = 200});
  ASSERT_TRUE(whole);
  const EncodedRequest& all = (*whole)[0][0];
  EXPECT_FALSE(all.is_truncated);
  const std::int64_t scored = std::ssize(all.tokens) - all.first_scored;
  const auto cut = EncodeItems(task, *model.tokenizer, {.max_positions = scored + 2});
  ASSERT_TRUE(cut) << cut.error().message;
  EXPECT_TRUE((*cut)[0][0].is_truncated);
  EXPECT_EQ((*cut)[0][0].first_scored, 2);
  EXPECT_TRUE(std::equal(all.tokens.end() - scored - 2, all.tokens.end(),
                         (*cut)[0][0].tokens.begin(), (*cut)[0][0].tokens.end()));
  const auto none = EncodeItems(task, *model.tokenizer, {.max_positions = scored});
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("t, item 0"), std::string::npos) << none.error().message;
  task.items[0].requests[0].continuation = "";
  EXPECT_FALSE(EncodeItems(task, *model.tokenizer, {.max_positions = 200}));
}

}  // namespace
}  // namespace nibble
