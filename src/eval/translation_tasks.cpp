#include "eval/translation_tasks.h"

#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "eval/bleu.h"
#include "eval/chrf.h"
#include "eval/task_data.h"

namespace nibble {
namespace {

struct Language {
  const char* code;   // of the task's name
  const char* field;  // of the file
  const char* name;   // in the prompt
  BleuTokenizer tokenizer = BleuTokenizer::k13a;
};
constexpr Language kEnglish{"en", "eng_Latn", "English"};
// In the order of FloresLanguage.
constexpr Language kLanguages[] = {{"de", "deu_Latn", "German"},
                                   {"fr", "fra_Latn", "French"},
                                   {"es", "spa_Latn", "Spanish"},
                                   {"ru", "rus_Cyrl", "Russian"},
                                   {"zh", "zho_Hans", "Chinese", BleuTokenizer::kZh},
                                   {"ja", "jpn_Jpan", "Japanese", BleuTokenizer::kChar},
                                   {"hi", "hin_Deva", "Hindi"},
                                   {"ar", "arb_Arab", "Arabic"}};

// An item's values are the counts that BLEU and chrF are made of, one after the other.
std::vector<double> ToValues(const BleuCounts& bleu, const ChrfCounts& chrf) {
  std::vector<double> values = {static_cast<double>(bleu.hypothesis_tokens),
                                static_cast<double>(bleu.reference_tokens)};
  const auto append = [&](const auto& counts) {
    values.insert(values.end(), counts.begin(), counts.end());
  };
  append(bleu.matches);
  append(bleu.ngrams);
  append(chrf.matches);
  append(chrf.in_hypothesis);
  append(chrf.in_reference);
  return values;
}

std::pair<BleuCounts, ChrfCounts> FromValues(std::span<const double> values) {
  BleuCounts bleu;
  ChrfCounts chrf;
  std::size_t at = 0;
  const auto take = [&](std::int64_t& count) { count = std::llround(values[at++]); };
  take(bleu.hypothesis_tokens);
  take(bleu.reference_tokens);
  const auto take_all = [&](auto& counts) {
    for (std::int64_t& count : counts) {
      take(count);
    }
  };
  take_all(bleu.matches);
  take_all(bleu.ngrams);
  take_all(chrf.matches);
  take_all(chrf.in_hypothesis);
  take_all(chrf.in_reference);
  return {bleu, chrf};
}

std::vector<std::string> ValueNames() {
  std::vector<std::string> names = {"hypothesis_tokens", "reference_tokens"};
  const auto append = [&](const char* what, std::size_t orders) {
    for (std::size_t n = 1; n <= orders; ++n) {
      names.push_back(fmt::format("{}_{}", what, n));
    }
  };
  append("bleu_matches", BleuCounts::kOrders);
  append("bleu_ngrams", BleuCounts::kOrders);
  append("chrf_matches", ChrfCounts::kOrders);
  append("chrf_in_hypothesis", ChrfCounts::kOrders);
  append("chrf_in_reference", ChrfCounts::kOrders);
  return names;
}

double BleuOf(std::span<const double> sums) { return Bleu(FromValues(sums).first); }
double ChrfOf(std::span<const double> sums) { return Chrf(FromValues(sums).second); }

// A score of the corpus's sums. Its standard error is the jackknife's, each item left out once: the
// same on every machine, and it costs one pass.
Estimate CorpusScore(std::span<const ItemScore> items, double (*score)(std::span<const double>)) {
  std::vector<double> sums(items[0].values.size());
  for (const ItemScore& item : items) {
    for (std::size_t v = 0; v < sums.size(); ++v) {
      sums[v] += item.values[v];
    }
  }
  const auto n = static_cast<double>(items.size());
  Estimate estimate{.value = score(sums),
                    .standard_error = std::numeric_limits<double>::quiet_NaN()};
  if (items.size() < 2) {
    return estimate;
  }
  std::vector<double> without;
  double mean = 0.0;
  for (const ItemScore& item : items) {
    std::vector<double> rest = sums;
    for (std::size_t v = 0; v < rest.size(); ++v) {
      rest[v] -= item.values[v];
    }
    without.push_back(score(rest));
    mean += without.back() / n;
  }
  double squares = 0.0;
  for (const double value : without) {
    squares += (value - mean) * (value - mean);
  }
  estimate.standard_error = std::sqrt(squares * (n - 1.0) / n);
  return estimate;
}

Metric CorpusMetric(const char* name, double (*score)(std::span<const double>)) {
  return {.name = name, .aggregate = [score](std::span<const ItemScore> items) {
            return CorpusScore(items, score);
          }};
}

}  // namespace

Result<Task> LoadTranslationTask(const std::filesystem::path& data_dir, FloresLanguage language,
                                 bool from_english) {
  const Language& other = kLanguages[static_cast<std::size_t>(language)];
  const Language& source = from_english ? kEnglish : other;
  const Language& target = from_english ? other : kEnglish;
  Task task{.name = fmt::format("flores_{}-{}", source.code, target.code),
            .kind = RequestKind::kGenerate};
  NIBBLE_TRY(data, ReadDataFile(data_dir, "flores200/devtest.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      data,
      [&](DocReader& doc) {
        TaskItem item{.id = doc.Id(), .doc = doc.String(target.field)};
        item.requests = {{.context = fmt::format("{} sentence: {}\n{} sentence:", source.name,
                                                 doc.String(source.field), target.name),
                          .max_tokens = 256,
                          .stop = {"\n"}}};
        return item;
      },
      task));
  task.notes = {
      fmt::format("BLEU as sacrebleu with the tokenizer {}, smoothing exp; chrF2 as "
                  "sacrebleu; standard errors by the jackknife",
                  Name(target.tokenizer))};
  task.value_names = ValueNames();
  task.score = [tokenizer = target.tokenizer](
                   const TaskItem& item,
                   std::span<const RequestResult> results) -> Result<std::vector<double>> {
    const std::string& reference = *item.doc.AsString();
    return ToValues(CountBleu(results[0].text, {&reference, 1}, tokenizer),
                    CountChrf(results[0].text, {&reference, 1}));
  };
  task.metrics = {CorpusMetric("bleu", BleuOf), CorpusMetric("chrf", ChrfOf)};
  return task;
}

}  // namespace nibble
