#include "eval/generation_tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "eval/python_sandbox.h"
#include "tests/io/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempFolder;

Result<Task> TryLoad(const std::filesystem::path& data, std::string_view name) {
  const auto tasks = GenerationTasks();
  const auto found = std::ranges::find_if(tasks, [&](const auto& t) { return t.name == name; });
  return found == tasks.end() ? Fail(ErrorCode::kNotFound, std::string(name)) : found->load(data);
}

Task Load(const std::filesystem::path& data, std::string_view name) {
  auto task = TryLoad(data, name);
  EXPECT_TRUE(task) << task.error().message;
  return std::move(task).value_or(Task{});
}

std::vector<double> Score(const Task& task, std::size_t item, const std::string& text) {
  const RequestResult result{.text = text};
  const auto values = task.score(task.items.at(item), {&result, 1});
  EXPECT_TRUE(values) << values.error().message;
  return values.value_or(std::vector<double>{});
}

double Aggregate(const Task& task, const char* metric, const std::vector<ItemScore>& scores) {
  const auto found =
      std::ranges::find_if(task.metrics, [&](const Metric& m) { return m.name == metric; });
  EXPECT_NE(found, task.metrics.end()) << metric;
  return found->aggregate(scores).value;
}

bool HasSandbox() { return PythonSandbox::Create().has_value(); }

TEST(GenerationTasks, Gsm8kShowsFiveExamplesAndComparesNumbers) {
  const TempFolder folder;
  std::string examples;
  for (int i = 0; i < 8; ++i) {
    examples +=
        R"({"id": 0, "question": "q)" + std::to_string(i) + R"(", "answer": "a\n#### 1"})" + "\n";
  }
  folder.Write("gsm8k/train8.jsonl", examples);
  folder.Write("gsm8k/test.jsonl",
               R"({"id": 9, "question": "How many?", "answer": "so <<1+1=2>>2\n#### 1,234"})");
  const Task task = Load(folder.path(), "gsm8k");
  const TaskRequest& request = task.items.at(0).requests.at(0);
  EXPECT_TRUE(request.context.starts_with(
      "Question: q0\nAnswer: a\n#### 1\n\nQuestion: q1\nAnswer: a\n#### 1\n\n"));
  EXPECT_TRUE(request.context.ends_with("#### 1\n\nQuestion: How many?\nAnswer:"));
  EXPECT_EQ(request.context.find("q5"), std::string::npos);
  EXPECT_THAT(request.stop, ElementsAre("Question:", "</s>", "<|im_end|>"));
  EXPECT_THAT(Score(task, 0, " It is\n#### 1234"), ElementsAre(1.0, 1.0));
  EXPECT_THAT(Score(task, 0, " It is $1,234."), ElementsAre(0.0, 1.0));
  EXPECT_THAT(Score(task, 0, " nobody knows"), ElementsAre(0.0, 0.0));
}

TEST(GenerationTasks, HumanEvalRunsTheTests) {
  if (!HasSandbox()) {
    GTEST_SKIP() << "this machine cannot run the sandbox";
  }
  const TempFolder folder;
  folder.Write(
      "humaneval/HumanEval.jsonl",
      R"({"task_id": "HumanEval/0", "prompt": "def two():\n", "entry_point": "two", "test": "def check(f):\n    assert f() == 2\n"})");
  const Task task = Load(folder.path(), "humaneval");
  EXPECT_EQ(task.items.at(0).requests.at(0).context, "def two():\n");
  EXPECT_THAT(Score(task, 0, "    return 2\n"), ElementsAre(1.0, 0.0));
  EXPECT_THAT(Score(task, 0, "    return 3\n"), ElementsAre(0.0, 0.0));
  EXPECT_THAT(task.notes.at(0), HasSubstr("seccomp"));
}

TEST(GenerationTasks, MbppIsThreeShot) {
  if (!HasSandbox()) {
    GTEST_SKIP() << "this machine cannot run the sandbox";
  }
  const TempFolder folder;
  const auto line = [](const char* id) {
    return std::string(R"({"task_id": )") + id +
           R"(, "text": "Do it.", "code": "x = 1", "test_list": ["assert x == 1", "assert x", "assert x > 0"]})" +
           "\n";
  };
  folder.Write("mbpp/fewshot.jsonl", line("2") + line("3") + line("4"));
  folder.Write("mbpp/mbpp.jsonl", line("11"));
  const Task task = Load(folder.path(), "mbpp");
  const std::string question =
      "You are an expert Python programmer, and here is your task: Do it. Your code should pass "
      "these tests:\n\nassert x == 1\nassert x\nassert x > 0\n[BEGIN]\n";
  const std::string example = question + "x = 1\n[DONE]\n\n";
  EXPECT_EQ(task.items.at(0).requests.at(0).context, example + example + example + question);
  EXPECT_EQ(Score(task, 0, "x = 1\n").at(0), 1.0);
  EXPECT_EQ(Score(task, 0, "x = 2\n").at(0), 0.0);
}

TEST(GenerationTasks, IfevalCountsOnlyWhatIsJudged) {
  const TempFolder folder;
  folder.Write(
      "ifeval/ifeval.jsonl",
      R"({"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"], "kwargs": [{}, {}]})"
      "\n"
      R"({"key": 2, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "language:response_language"], "kwargs": [{}, {"language": "de"}]})");
  const Task task = Load(folder.path(), "ifeval");
  EXPECT_THAT(task.notes.at(0), HasSubstr("1 of 4 instructions are not judged"));
  const std::vector<ItemScore> scores = {{.values = Score(task, 0, "no comma, but")},
                                         {.values = Score(task, 1, "kein Komma")}};
  EXPECT_EQ(Aggregate(task, "prompt_level_strict_acc", scores), 0.0);  // of one prompt
  EXPECT_NEAR(Aggregate(task, "inst_level_strict_acc", scores), 1.0 / 3.0, 1e-12);
}

TEST(GenerationTasks, SciTldrTakesTheBestReference) {
  const TempFolder folder;
  folder.Write(
      "scitldr/test.jsonl",
      R"({"id": "x", "source": ["One.", "Two. \n"], "references": ["other words", "the cats ran"]})");
  const Task task = Load(folder.path(), "scitldr");
  EXPECT_EQ(task.items.at(0).requests.at(0).context, "One. Two.\n\nTL;DR:");
  EXPECT_THAT(Score(task, 0, " The cat ran."), ElementsAre(1.0, 1.0, 1.0));
}

TEST(GenerationTasks, FloresIsScoredAsACorpus) {
  const TempFolder folder;
  folder.Write("flores200/devtest.jsonl",
               "{\"id\": 0, \"eng_Latn\": \"One small cat sat here.\", \"deu_Latn\": \"Eine kleine "
               "Katze sass hier.\"}\n"
               "{\"id\": 1, \"eng_Latn\": \"Two.\", \"deu_Latn\": \"Zwei.\"}\n");
  const Task task = Load(folder.path(), "flores_en-de");
  EXPECT_EQ(task.items.at(1).requests.at(0).context, "English sentence: Two.\nGerman sentence:");
  EXPECT_EQ(Load(folder.path(), "flores_de-en").items.at(1).requests.at(0).context,
            "German sentence: Zwei.\nEnglish sentence:");
  const std::vector<ItemScore> scores = {
      {.values = Score(task, 0, " Eine kleine Katze sass hier.")},
      {.values = Score(task, 1, " Zwei.")}};
  EXPECT_EQ(scores[0].values.size(), task.value_names.size());
  EXPECT_NEAR(Aggregate(task, "bleu", scores), 100.0, 1e-9);
  EXPECT_NEAR(Aggregate(task, "chrf", scores), 100.0, 1e-9);
  const std::vector<ItemScore> wrong = {scores[0], {.values = Score(task, 1, "Drei?")}};
  EXPECT_LT(Aggregate(task, "bleu", wrong), 100.0);
}

TEST(GenerationTasks, NamesTheLineThatLacksAField) {
  const TempFolder folder;
  folder.Write("scitldr/test.jsonl", R"({"id": "x", "source": ["One."]})");
  const auto task = TryLoad(folder.path(), "scitldr");
  ASSERT_FALSE(task);
  EXPECT_THAT(task.error().message, HasSubstr("test.jsonl:1: references"));
}

// The data sets' own solutions are the only programs that are known to be right.
TEST(GenerationTasks, ReferenceSolutionsPassAndMutilatedOnesFail) {
  const char* const variable = std::getenv("NIBBLE_SHARED_DATA");
  const std::filesystem::path data =
      variable != nullptr ? variable : NIBBLE_SOURCE_DIR "/../shared/data";
  if (!std::filesystem::exists(data / "humaneval") || !HasSandbox()) {
    GTEST_SKIP() << "needs the data sets (NIBBLE_SHARED_DATA) and the sandbox";
  }
  const Task task = Load(data, "humaneval");
  for (std::size_t i = 0; i < task.items.size(); i += 20) {
    const std::string& solution = *task.items[i].doc.Find("canonical_solution")->AsString();
    EXPECT_EQ(Score(task, i, solution).at(0), 1.0) << task.items[i].id;
    EXPECT_EQ(Score(task, i, "    return None\n").at(0), 0.0) << task.items[i].id;
  }
}

}  // namespace
}  // namespace nibble
