#include "eval/generation_tasks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "eval/answers.h"
#include "eval/code_tasks.h"
#include "eval/ifeval_task.h"
#include "eval/metric.h"
#include "eval/rouge.h"
#include "eval/task_data.h"
#include "eval/translation_tasks.h"
#include "template/pystring.h"

namespace nibble {
namespace {

constexpr std::int32_t kGsm8kShots = 5;

std::string Gsm8kQuestion(DocReader& doc) {
  return fmt::format("Question: {}\nAnswer:", doc.String("question"));
}

Result<std::string> Gsm8kExamples(const std::filesystem::path& data_dir) {
  NIBBLE_TRY(file, ReadDataFile(data_dir, "gsm8k/train8.jsonl"));
  if (std::ssize(file.lines) < kGsm8kShots) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: expected {} examples or more, found {}", file.path.string(),
                            kGsm8kShots, file.lines.size()));
  }
  std::string text;
  for (std::size_t i = 0; i < kGsm8kShots; ++i) {
    DocReader doc(file.lines[i], fmt::format("{}:{}", file.path.string(), file.line_numbers[i]));
    const std::string question = Gsm8kQuestion(doc);
    text += fmt::format("{} {}\n\n", question, doc.String("answer"));
    NIBBLE_TRY_VOID(doc.status());
  }
  return text;
}

double IsRight(const TaskItem& item, std::string_view text, AnswerRule rule) {
  const auto answer = ExtractGsm8kAnswer(text, rule);
  return answer && SameGsm8kAnswer(*answer, *item.doc.Find("answer")->AsString()) ? 1.0 : 0.0;
}

Result<Task> LoadGsm8k(const std::filesystem::path& data_dir) {
  Task task{.name = "gsm8k", .kind = RequestKind::kGenerate, .num_fewshot = kGsm8kShots};
  NIBBLE_TRY(examples, Gsm8kExamples(data_dir));
  NIBBLE_TRY(data, ReadDataFile(data_dir, "gsm8k/test.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      data,
      [&](DocReader& doc) {
        TaskItem item{.id = doc.Id(), .doc = doc.doc()};
        item.requests = {{.context = examples + Gsm8kQuestion(doc),
                          .max_tokens = 256,
                          .stop = {"Question:", "</s>", "<|im_end|>"}}};
        doc.String("answer");  // the scorer reads it
        return item;
      },
      task));
  task.notes = {"the examples are the first 5 of the train split; lm-eval draws them at random"};
  task.value_names = {"exact_match_strict", "exact_match_flexible"};
  task.score = [](const TaskItem& item,
                  std::span<const RequestResult> results) -> Result<std::vector<double>> {
    const std::string& text = results[0].text;
    return std::vector{IsRight(item, text, AnswerRule::kStrict),
                       IsRight(item, text, AnswerRule::kFlexible)};
  };
  task.metrics = {MeanMetric("exact_match_strict", 0), MeanMetric("exact_match_flexible", 1)};
  return task;
}

Result<Task> LoadSciTldr(const std::filesystem::path& data_dir) {
  Task task{.name = "scitldr", .kind = RequestKind::kGenerate};
  NIBBLE_TRY(data, ReadDataFile(data_dir, "scitldr/test.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      data,
      [](DocReader& doc) {
        TaskItem item{.id = doc.Id(), .doc = doc.doc()};
        const std::string abstract = fmt::format("{}", fmt::join(doc.Strings("source"), " "));
        item.requests = {
            {.context = fmt::format("{}\n\nTL;DR:", jinja::Strip(abstract, jinja::Side::kBoth)),
             .max_tokens = 64,
             .stop = {"\n"}}};
        doc.Strings("references");
        return item;
      },
      task));
  task.notes = {
      "abstracts only (SciTLDR-A), the best of the references for each measure; the prompt "
      "is nibble's own, lm-eval has no such task"};
  task.value_names = {"rouge1", "rouge2", "rougeL"};
  task.score = [](const TaskItem& item,
                  std::span<const RequestResult> results) -> Result<std::vector<double>> {
    DocReader doc(item.doc, item.id);
    const RougeScores scores = ScoreRouge(doc.Strings("references"), results[0].text);
    return std::vector{scores.rouge1.f1, scores.rouge2.f1, scores.rouge_l.f1};
  };
  task.metrics = {MeanMetric("rouge1", 0), MeanMetric("rouge2", 1), MeanMetric("rougeL", 2)};
  return task;
}

using enum FloresLanguage;
constexpr TaskEntry kTasks[] = {
    {"gsm8k", "grade-school arithmetic, 5-shot, the final number", LoadGsm8k},
    {"humaneval", "Python functions from their docstrings, pass@1 in a sandbox", LoadHumanEval},
    {"mbpp", "small Python programs, 3-shot, pass@1 in a sandbox", LoadMbpp},
    {"ifeval", "verifiable instructions, strict and loose", LoadIfeval},
    {"scitldr", "one sentence for an abstract, ROUGE-1, -2 and -L", LoadSciTldr},
    {"flores_en-de", "English to German, BLEU and chrF", LoadTranslation<kGerman, true>},
    {"flores_en-fr", "English to French, BLEU and chrF", LoadTranslation<kFrench, true>},
    {"flores_en-es", "English to Spanish, BLEU and chrF", LoadTranslation<kSpanish, true>},
    {"flores_en-ru", "English to Russian, BLEU and chrF", LoadTranslation<kRussian, true>},
    {"flores_en-zh", "English to Chinese, BLEU and chrF", LoadTranslation<kChinese, true>},
    {"flores_en-ja", "English to Japanese, BLEU and chrF", LoadTranslation<kJapanese, true>},
    {"flores_en-hi", "English to Hindi, BLEU and chrF", LoadTranslation<kHindi, true>},
    {"flores_en-ar", "English to Arabic, BLEU and chrF", LoadTranslation<kArabic, true>},
    {"flores_de-en", "German to English, BLEU and chrF", LoadTranslation<kGerman, false>},
    {"flores_fr-en", "French to English, BLEU and chrF", LoadTranslation<kFrench, false>},
    {"flores_es-en", "Spanish to English, BLEU and chrF", LoadTranslation<kSpanish, false>},
    {"flores_ru-en", "Russian to English, BLEU and chrF", LoadTranslation<kRussian, false>},
    {"flores_zh-en", "Chinese to English, BLEU and chrF", LoadTranslation<kChinese, false>},
    {"flores_ja-en", "Japanese to English, BLEU and chrF", LoadTranslation<kJapanese, false>},
    {"flores_hi-en", "Hindi to English, BLEU and chrF", LoadTranslation<kHindi, false>},
    {"flores_ar-en", "Arabic to English, BLEU and chrF", LoadTranslation<kArabic, false>},
};

}  // namespace

std::span<const TaskEntry> GenerationTasks() { return kTasks; }

}  // namespace nibble
