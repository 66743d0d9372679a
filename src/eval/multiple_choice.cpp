#include "eval/multiple_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <utility>

#include "eval/metric.h"
#include "eval/task_data.h"
#include "template/pystring.h"

namespace nibble {
namespace {

constexpr std::int32_t kMmluShots = 5;
constexpr std::size_t kMmluChoices = 4;

// The first index of the largest, as numpy.argmax.
std::int64_t ArgMax(const std::vector<double>& values) {
  return std::ranges::max_element(values) - values.begin();
}

double IsAnswer(const TaskItem& item, const std::vector<double>& values) {
  return ArgMax(values) == item.answer ? 1.0 : 0.0;
}

std::vector<double> LogProbs(std::span<const RequestResult> results) {
  std::vector<double> values;
  std::ranges::transform(results, std::back_inserter(values), &RequestResult::logprob);
  return values;
}

Result<std::vector<double>> ScoreChoice(const TaskItem& item,
                                        std::span<const RequestResult> results) {
  return std::vector{IsAnswer(item, LogProbs(results))};
}

// The same, and normalized by what each choice is long.
Result<std::vector<double>> ScoreNormalizedChoice(const TaskItem& item,
                                                  std::span<const RequestResult> results) {
  const std::vector<double> plain = LogProbs(results);
  std::vector<double> by_characters = plain, by_bytes = plain;
  for (std::size_t i = 0; i < results.size(); ++i) {
    // Without the blank that parts it from the context.
    const std::string_view choice = std::string_view(item.requests[i].continuation).substr(1);
    by_characters[i] /= static_cast<double>(jinja::Length(choice));
    by_bytes[i] /= static_cast<double>(choice.size());
  }
  return std::vector{IsAnswer(item, plain), IsAnswer(item, by_characters),
                     IsAnswer(item, by_bytes)};
}

void ScoreByChoice(Task& task) {
  task.value_names = {"acc"};
  task.metrics = {MeanMetric("acc", 0)};
  task.score = ScoreChoice;
}

void ScoreByNormalizedChoice(Task& task) {
  task.value_names = {"acc", "acc_norm", "acc_bytes"};
  task.metrics = {MeanMetric("acc", 0), MeanMetric("acc_norm", 1), MeanMetric("acc_bytes", 2)};
  task.score = ScoreNormalizedChoice;
}

// " " + choice after one context.
void Ask(const std::string& context, const std::vector<std::string>& choices, TaskItem& item) {
  for (const std::string& choice : choices) {
    item.requests.push_back({.context = context, .continuation = " " + choice});
  }
}

using MakeItem = TaskItem (*)(DocReader&);

Result<Task> LoadChoices(const char* name, const std::filesystem::path& data_dir, const char* file,
                         MakeItem make, void (*score_by)(Task&)) {
  Task task{.name = name};
  NIBBLE_TRY(data, ReadDataFile(data_dir, file));
  NIBBLE_TRY_VOID(AddItems(data, make, task));
  score_by(task);
  return task;
}

TaskItem ContextItem(DocReader& doc, const std::string& context) {
  TaskItem item{.id = doc.Id()};
  Ask(context, doc.Strings("choices"), item);
  item.answer = doc.Index("answer", item.requests.size());
  return item;
}

TaskItem QuestionItem(DocReader& doc, const std::string& question) {
  return ContextItem(doc, fmt::format("Question: {}\nAnswer:", question));
}

TaskItem ArcItem(DocReader& doc) { return QuestionItem(doc, doc.String("question")); }
TaskItem PiqaItem(DocReader& doc) { return QuestionItem(doc, doc.String("goal")); }
TaskItem HellaSwagItem(DocReader& doc) { return ContextItem(doc, doc.String("ctx")); }
TaskItem OpenBookItem(DocReader& doc) { return ContextItem(doc, doc.String("question")); }

TaskItem BoolQItem(DocReader& doc) {
  TaskItem item{.id = doc.Id()};
  Ask(fmt::format("{}\nQuestion: {}?\nAnswer:", doc.String("passage"), doc.String("question")),
      {"no", "yes"}, item);
  item.answer = doc.Index("answer", item.requests.size());
  return item;
}

// Each choice fills the gap; what is scored is the rest of the sentence (partial evaluation).
TaskItem WinoGrandeItem(DocReader& doc) {
  TaskItem item{.id = doc.Id()};
  const std::string sentence = doc.String("sentence");
  const std::size_t gap = sentence.find('_');
  if (gap == std::string::npos) {
    doc.Refuse("sentence", "a sentence with a _ to fill");
    return item;
  }
  const std::string_view rest =
      jinja::Strip(std::string_view(sentence).substr(gap + 1), jinja::Side::kBoth);
  for (const std::string& choice : doc.Strings("choices")) {
    item.requests.push_back(
        {.context = sentence.substr(0, gap) + choice, .continuation = fmt::format(" {}", rest)});
  }
  item.answer = doc.Index("answer", item.requests.size());
  return item;
}

// The last word after the text before it.
TaskItem LambadaItem(DocReader& doc) {
  TaskItem item{.id = doc.Id()};
  const std::string text = doc.String("text");
  const std::size_t blank = text.rfind(' ');
  const std::size_t word = blank == std::string::npos ? 0 : blank + 1;
  item.requests.push_back(
      {.context = text.substr(0, word == 0 ? 0 : blank), .continuation = " " + text.substr(word)});
  return item;
}

void ScoreByLastWord(Task& task) {
  task.value_names = {"acc", "logprob"};
  task.metrics = {MeanMetric("acc", 0),
                  {.name = "perplexity",
                   .aggregate = [](auto items) { return PerplexityOf(items, 1); },
                   .higher_is_better = false}};
  task.score = [](const TaskItem&,
                  std::span<const RequestResult> results) -> Result<std::vector<double>> {
    return std::vector{results[0].is_greedy ? 1.0 : 0.0, results[0].logprob};
  };
}

struct MmluQuestion {
  std::string id, subject, text;  // text: up to "Answer:"
  std::int64_t answer = 0;
};

MmluQuestion ReadMmluQuestion(DocReader& doc) {
  MmluQuestion out{.id = doc.Id(), .subject = doc.String("subject"), .text = {}};
  const std::vector<std::string> choices = doc.Strings("choices");
  if (choices.size() != kMmluChoices) {
    doc.Refuse("choices", "four choices");
    return out;
  }
  out.text = fmt::format("{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:",
                         jinja::Strip(doc.String("question"), jinja::Side::kBoth), choices[0],
                         choices[1], choices[2], choices[3]);
  out.answer = doc.Index("answer", choices.size());
  return out;
}

std::string Letter(std::int64_t answer) { return std::string(1, static_cast<char>('A' + answer)); }

// The solved examples of each subject, as they stand before a question.
Result<std::map<std::string, std::string>> ReadMmluExamples(const DataFile& data) {
  std::map<std::string, std::string> examples;
  std::map<std::string, int> counts;
  for (std::size_t i = 0; i < data.lines.size(); ++i) {
    DocReader doc(data.lines[i], fmt::format("{}:{}", data.path.string(), data.line_numbers[i]));
    const MmluQuestion question = ReadMmluQuestion(doc);
    NIBBLE_TRY_VOID(doc.status());
    if (++counts[question.subject] <= kMmluShots) {
      examples[question.subject] +=
          fmt::format("{} {}\n\n", question.text, Letter(question.answer));
    }
  }
  return examples;
}

Result<Task> LoadMmlu(const std::filesystem::path& data_dir) {
  Task task{.name = "mmlu"};
  std::map<std::string, std::string> examples;
  std::string hashes;
  if (std::filesystem::exists(data_dir / "mmlu/dev.jsonl")) {
    NIBBLE_TRY(dev, ReadDataFile(data_dir, "mmlu/dev.jsonl"));
    NIBBLE_TRY(read, ReadMmluExamples(dev));
    examples = std::move(read);
    hashes = "+" + dev.sha256;
    task.num_fewshot = kMmluShots;
  } else {
    task.notes.emplace_back("0-shot: there is no mmlu/dev.jsonl to take examples from");
  }
  NIBBLE_TRY(test, ReadDataFile(data_dir, "mmlu/test.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      test,
      [&](DocReader& doc) {
        MmluQuestion question = ReadMmluQuestion(doc);
        TaskItem item{.id = question.id, .group = question.subject, .answer = question.answer};
        if (task.num_fewshot > 0 && !examples.contains(question.subject)) {
          doc.Refuse("subject", "one that mmlu/dev.jsonl has examples of");
          return item;
        }
        Ask(fmt::format("The following are multiple choice questions (with answers) about {}.\n\n"
                        "{}{}",
                        jinja::Replace(question.subject, "_", " ", -1),
                        task.num_fewshot > 0 ? examples[question.subject] : "", question.text),
            {"A", "B", "C", "D"}, item);
        return item;
      },
      task));
  task.data_sha256 += hashes;
  ScoreByChoice(task);
  task.metrics = {{.name = "acc", .aggregate = [](auto items) { return PooledMeanOf(items, 0); }}};
  return task;
}

Result<Task> LoadHellaSwag(const std::filesystem::path& dir) {
  NIBBLE_TRY(task, LoadChoices("hellaswag", dir, "hellaswag/hellaswag.jsonl", HellaSwagItem,
                               ScoreByNormalizedChoice));
  task.notes.emplace_back(
      "contexts as the file has them: where lm-eval joins two sentences itself it begins the "
      "second with a capital");
  return task;
}

constexpr std::array kTasks = {
    TaskEntry{"lambada", "the last word of a passage (lm-eval: lambada_openai)",
              [](const std::filesystem::path& dir) {
                return LoadChoices("lambada", dir, "lambada/lambada.jsonl", LambadaItem,
                                   ScoreByLastWord);
              }},
    TaskEntry{"arc_easy", "science questions for school, the easy part",
              [](const std::filesystem::path& dir) {
                return LoadChoices("arc_easy", dir, "arc-easy/arc-easy.jsonl", ArcItem,
                                   ScoreByNormalizedChoice);
              }},
    TaskEntry{"arc_challenge", "... and the hard part",
              [](const std::filesystem::path& dir) {
                return LoadChoices("arc_challenge", dir, "arc-challenge/arc-challenge.jsonl",
                                   ArcItem, ScoreByNormalizedChoice);
              }},
    TaskEntry{"hellaswag", "how a described scene goes on", LoadHellaSwag},
    TaskEntry{"piqa", "how things are done in the physical world",
              [](const std::filesystem::path& dir) {
                return LoadChoices("piqa", dir, "piqa/piqa.jsonl", PiqaItem,
                                   ScoreByNormalizedChoice);
              }},
    TaskEntry{"winogrande", "whom a sentence speaks of",
              [](const std::filesystem::path& dir) {
                return LoadChoices("winogrande", dir, "winogrande/winogrande.jsonl", WinoGrandeItem,
                                   ScoreByChoice);
              }},
    TaskEntry{"boolq", "yes or no, after a passage",
              [](const std::filesystem::path& dir) {
                return LoadChoices("boolq", dir, "boolq/boolq.jsonl", BoolQItem, ScoreByChoice);
              }},
    TaskEntry{"openbookqa", "elementary science with common sense",
              [](const std::filesystem::path& dir) {
                return LoadChoices("openbookqa", dir, "openbookqa/openbookqa.jsonl", OpenBookItem,
                                   ScoreByNormalizedChoice);
              }},
    TaskEntry{"mmlu", "57 subjects, the letter of the answer; 5-shot", LoadMmlu},
};

}  // namespace

std::span<const TaskEntry> MultipleChoiceTasks() { return kTasks; }

}  // namespace nibble
