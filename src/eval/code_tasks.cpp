#include "eval/code_tasks.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "eval/answers.h"
#include "eval/metric.h"
#include "eval/python_sandbox.h"
#include "eval/task_data.h"

namespace nibble {
namespace {

constexpr std::int32_t kMbppShots = 3;

// A generated text becomes the program whose run decides.
using MakeProgram = std::string (*)(DocReader& doc, const std::string& text);

Result<void> ScorePrograms(MakeProgram make_program, Task& task) {
  NIBBLE_TRY(made, PythonSandbox::Create());
  const auto sandbox = std::make_shared<const PythonSandbox>(std::move(made));
  task.notes.push_back(fmt::format("programs ran in a sandbox: {}", sandbox->layers()));
  task.value_names = {"pass@1", "timed_out"};
  task.score = [sandbox, make_program](
                   const TaskItem& item,
                   std::span<const RequestResult> results) -> Result<std::vector<double>> {
    std::int64_t passed = 0, timed_out = 0;
    for (const RequestResult& result : results) {
      DocReader doc(item.doc, item.id);
      NIBBLE_TRY(outcome, sandbox->Run(make_program(doc, result.text)));
      passed += outcome.kind == SandboxOutcome::Kind::kPassed ? 1 : 0;
      timed_out += outcome.kind == SandboxOutcome::Kind::kTimedOut ? 1 : 0;
    }
    return std::vector{PassAtK(std::ssize(results), passed, 1), static_cast<double>(timed_out)};
  };
  task.metrics = {MeanMetric("pass@1", 0)};
  return {};
}

std::string HumanEvalProgram(DocReader& doc, const std::string& text) {
  return fmt::format("{}{}\n{}\ncheck({})", doc.String("prompt"), text, doc.String("test"),
                     doc.String("entry_point"));
}

std::string FirstThreeTests(DocReader& doc) {
  std::vector<std::string> tests = doc.Strings("test_list");
  if (tests.size() < 3) {
    doc.Refuse("test_list", "three tests");
    tests.resize(3);
  }
  return fmt::format("{}\n{}\n{}", tests[0], tests[1], tests[2]);
}

std::string MbppProgram(DocReader& doc, const std::string& text) {
  return fmt::format("{}\n{}", text, FirstThreeTests(doc));
}

std::string MbppQuestion(DocReader& doc) {
  return fmt::format(
      "You are an expert Python programmer, and here is your task: {} Your code should pass these "
      "tests:\n\n{}\n[BEGIN]\n",
      doc.String("text"), FirstThreeTests(doc));
}

Result<std::string> MbppExamples(const std::filesystem::path& data_dir) {
  NIBBLE_TRY(file, ReadDataFile(data_dir, "mbpp/fewshot.jsonl"));
  if (std::ssize(file.lines) != kMbppShots) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: expected {} examples, found {}", file.path.string(), kMbppShots,
                            file.lines.size()));
  }
  std::string text;
  for (std::size_t i = 0; i < file.lines.size(); ++i) {
    DocReader doc(file.lines[i], fmt::format("{}:{}", file.path.string(), file.line_numbers[i]));
    const std::string question = MbppQuestion(doc);
    text += fmt::format("{}{}\n[DONE]\n\n", question, doc.String("code"));
    NIBBLE_TRY_VOID(doc.status());
  }
  return text;
}

}  // namespace

Result<Task> LoadHumanEval(const std::filesystem::path& data_dir) {
  Task task{.name = "humaneval", .kind = RequestKind::kGenerate};
  NIBBLE_TRY(data, ReadDataFile(data_dir, "humaneval/HumanEval.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      data,
      [](DocReader& doc) {
        TaskItem item{.id = doc.Id("task_id"), .doc = doc.doc()};
        item.requests = {{.context = doc.String("prompt"),
                          .max_tokens = 1024,
                          .stop = {"\nclass", "\ndef", "\n#", "\nif", "\nprint"}}};
        HumanEvalProgram(doc, "");  // so that what is missing is said now
        return item;
      },
      task));
  NIBBLE_TRY_VOID(ScorePrograms(HumanEvalProgram, task));
  return task;
}

Result<Task> LoadMbpp(const std::filesystem::path& data_dir) {
  Task task{.name = "mbpp", .kind = RequestKind::kGenerate, .num_fewshot = kMbppShots};
  NIBBLE_TRY(examples, MbppExamples(data_dir));
  NIBBLE_TRY(data, ReadDataFile(data_dir, "mbpp/mbpp.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      data,
      [&](DocReader& doc) {
        TaskItem item{.id = doc.Id("task_id"), .doc = doc.doc()};
        item.requests = {
            {.context = examples + MbppQuestion(doc), .max_tokens = 256, .stop = {"[DONE]"}}};
        return item;
      },
      task));
  NIBBLE_TRY_VOID(ScorePrograms(MbppProgram, task));
  return task;
}

}  // namespace nibble
