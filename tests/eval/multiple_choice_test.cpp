#include "eval/multiple_choice.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using testing::TempFolder;

Task Load(const TempFolder& folder, const std::string& name) {
  auto task = LoadTask(name, folder.path());
  EXPECT_TRUE(task) << task.error().message;
  return std::move(task).value_or(Task{});
}

std::vector<std::string> Contexts(const TaskItem& item) {
  std::vector<std::string> out;
  for (const TaskRequest& request : item.requests) {
    out.push_back(request.context);
  }
  return out;
}

std::vector<std::string> Continuations(const TaskItem& item) {
  std::vector<std::string> out;
  for (const TaskRequest& request : item.requests) {
    out.push_back(request.continuation);
  }
  return out;
}

std::vector<double> Score(const Task& task, std::size_t item, const std::vector<double>& logprobs) {
  std::vector<RequestResult> results;
  for (const double logprob : logprobs) {
    results.push_back({.logprob = logprob});
  }
  return *task.score(task.items[item], results);
}

using Strings = std::vector<std::string>;

TEST(MultipleChoice, PromptsAreThoseOfTheHarness) {
  const TempFolder folder;
  const std::string question =
      R"({"id": "q1", "question": "Why?", "goal": "Why?", "ctx": "Why?", "choices": ["a b", "c"], "answer": 1})";
  for (const char* file :
       {"arc-easy/arc-easy.jsonl", "arc-challenge/arc-challenge.jsonl", "piqa/piqa.jsonl",
        "hellaswag/hellaswag.jsonl", "openbookqa/openbookqa.jsonl"}) {
    folder.Write(file, question + "\n");
  }
  for (const char* name : {"arc_easy", "arc_challenge", "piqa"}) {
    const Task task = Load(folder, name);
    EXPECT_EQ(Contexts(task.items.at(0)), Strings(2, "Question: Why?\nAnswer:")) << name;
    EXPECT_EQ(Continuations(task.items.at(0)), (Strings{" a b", " c"})) << name;
    EXPECT_EQ(task.items[0].answer, 1) << name;
    EXPECT_EQ(task.items[0].id, "q1") << name;
  }
  for (const char* name : {"hellaswag", "openbookqa"}) {
    const Task task = Load(folder, name);
    EXPECT_EQ(Contexts(task.items.at(0)), Strings(2, "Why?")) << name;
    EXPECT_EQ(Continuations(task.items.at(0)), (Strings{" a b", " c"})) << name;
  }
}

TEST(MultipleChoice, WinoGrandeScoresTheRestOfTheSentence) {
  const TempFolder folder;
  folder.Write(
      "winogrande/winogrande.jsonl",
      R"({"id": 7, "sentence": "Ann met Bo and _ was glad . ", "choices": ["Ann", "Bo"], "answer": 1})");
  const Task task = Load(folder, "winogrande");
  EXPECT_EQ(task.items.at(0).id, "7");
  EXPECT_EQ(Contexts(task.items[0]), (Strings{"Ann met Bo and Ann", "Ann met Bo and Bo"}));
  EXPECT_EQ(Continuations(task.items[0]), Strings(2, " was glad ."));
}

TEST(MultipleChoice, BoolQAsksForNoOrYes) {
  const TempFolder folder;
  folder.Write("boolq/boolq.jsonl",
               R"({"id": 0, "passage": "P.", "question": "is it so", "answer": 1})");
  const Task task = Load(folder, "boolq");
  EXPECT_EQ(Contexts(task.items.at(0)), Strings(2, "P.\nQuestion: is it so?\nAnswer:"));
  EXPECT_EQ(Continuations(task.items[0]), (Strings{" no", " yes"}));
}

TEST(MultipleChoice, LambadaWantsTheLastWordGreedily) {
  const TempFolder folder;
  folder.Write(
      "lambada/lambada.jsonl",
      "{\"id\": 0, \"text\": \"It was\\na dark night\"}\n\n{\"id\": 1, \"text\": \"x y\"}\n");
  const Task task = Load(folder, "lambada");
  ASSERT_EQ(task.items.size(), 2U);
  EXPECT_EQ(Contexts(task.items[0]), Strings{"It was\na dark"});
  EXPECT_EQ(Continuations(task.items[0]), Strings{" night"});
  const std::vector<RequestResult> greedy = {{.logprob = -0.5, .is_greedy = true}};
  const std::vector<RequestResult> other = {{.logprob = -3.5, .is_greedy = false}};
  const std::vector<ItemScore> scores = {{.values = *task.score(task.items[0], greedy)},
                                         {.values = *task.score(task.items[1], other)}};
  ASSERT_EQ(task.metrics.size(), 2U);
  EXPECT_EQ(task.metrics[0].aggregate(scores).value, 0.5);
  EXPECT_DOUBLE_EQ(task.metrics[1].aggregate(scores).value, std::exp(2.0));
}

TEST(MultipleChoice, MmluShowsFiveExamplesOfTheSubjectWhereThereAreSome) {
  const TempFolder folder;
  std::string dev;
  for (int i = 0; i < 6; ++i) {
    dev +=
        R"({"id": "s_t/dev/)" + std::to_string(i) +
        R"(", "subject": "s_t", "question": " E? ", "choices": ["1", "2", "3", "4"], "answer": 2})"
        "\n";
  }
  folder.Write(
      "mmlu/test.jsonl",
      R"({"id": "s_t/0", "subject": "s_t", "question": "Q?\n", "choices": ["5", "6", "7", "8"], "answer": 3})");
  const std::string head =
      "The following are multiple choice questions (with answers) about s t.\n\n";
  const std::string question = "Q?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:";
  const Task zero_shot = Load(folder, "mmlu");
  EXPECT_EQ(zero_shot.num_fewshot, 0);
  EXPECT_EQ(zero_shot.notes.size(), 1U);
  EXPECT_EQ(Contexts(zero_shot.items.at(0)), Strings(4, head + question));
  folder.Write("mmlu/dev.jsonl", dev);
  const Task task = Load(folder, "mmlu");
  EXPECT_EQ(task.num_fewshot, 5);
  std::string examples;
  for (int i = 0; i < 5; ++i) {
    examples += "E?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: C\n\n";
  }
  EXPECT_EQ(Contexts(task.items.at(0)), Strings(4, head + examples + question));
  EXPECT_EQ(Continuations(task.items[0]), (Strings{" A", " B", " C", " D"}));
  EXPECT_EQ(task.items[0].group, "s_t");
  EXPECT_NE(task.data_sha256, zero_shot.data_sha256);
}

TEST(MultipleChoice, TheThreeAccuraciesDivideByNothingCharactersAndBytes) {
  const TempFolder folder;
  folder.Write(
      "piqa/piqa.jsonl",
      R"({"id": 0, "goal": "g", "choices": ["xxxx", "\u00e9\u00e9\u00e9", "y"], "answer": 1})");
  const Task task = Load(folder, "piqa");
  // Characters 4, 3, 1; bytes 4, 6, 1.
  EXPECT_EQ(Score(task, 0, {-4.0, -4.1, -3.0}), (std::vector{0.0, 0.0, 1.0}));
  EXPECT_EQ(Score(task, 0, {-8.0, -3.0, -3.0}), (std::vector{1.0, 1.0, 1.0}));
  EXPECT_EQ(Score(task, 0, {-3.0, -3.0, -3.0}),
            (std::vector{0.0, 0.0, 1.0}));  // the first of equals
}

TEST(MultipleChoice, WrongDataNameFileLineAndField) {
  const TempFolder folder;
  const struct {
    const char* line;
    const char* complaint;
  } cases[] = {
      {R"({"id": 1, "choices": ["a"], "answer": 0})",
       "piqa.jsonl:2: goal: expected a string, found nothing"},
      {R"({"id": 1, "goal": "g", "choices": "a", "answer": 0})", "piqa.jsonl:2: choices"},
      {R"({"id": 1, "goal": "g", "choices": ["a", 3], "answer": 0})", "piqa.jsonl:2: choices"},
      {R"({"id": 1, "goal": "g", "choices": ["a", "b"], "answer": 2})",
       "piqa.jsonl:2: answer: expected a whole number from 0 to 1"},
      {R"({"id": 0, "goal": "g", "choices": ["a", "b"], "answer": 1})",
       "piqa.jsonl:2: another item"},
      {R"([])", "piqa.jsonl:2: expected an object"},
      {R"({"id": )", "piqa.jsonl:2: "},
  };
  for (const auto& wrong : cases) {
    folder.Write("piqa/piqa.jsonl",
                 std::string(R"({"id": 0, "goal": "g", "choices": ["a"], "answer": 0})") + "\n" +
                     wrong.line);
    const auto task = LoadTask("piqa", folder.path());
    ASSERT_FALSE(task) << wrong.line;
    EXPECT_NE(task.error().message.find(wrong.complaint), std::string::npos)
        << task.error().message;
  }
  folder.Write("piqa/piqa.jsonl", "\n");
  EXPECT_FALSE(LoadTask("piqa", folder.path()));
  const auto missing = LoadTask("boolq", folder.path());
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("boolq/boolq.jsonl"), std::string::npos);
  const auto unknown = LoadTask("piqua", folder.path());
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(unknown.error().message.find("winogrande"), std::string::npos);
}

}  // namespace
}  // namespace nibble
