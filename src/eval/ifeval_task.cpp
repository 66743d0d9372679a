#include "eval/ifeval_task.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "eval/instruction_check.h"
#include "eval/task_data.h"

namespace nibble {
namespace {

// Places in an item's values.
enum Value : std::size_t {
  kPromptJudged,  // 1: all of its instructions are judged
  kPromptStrict,
  kPromptLoose,
  kJudged,  // instructions
  kStrict,
  kLoose
};

Result<std::vector<InstructionCheck>> ReadChecks(DocReader& doc) {
  const std::vector<std::string> ids = doc.Strings("instruction_id_list");
  const json::Value* kwargs = doc.doc().Find("kwargs");
  if (kwargs == nullptr || kwargs->AsArray() == nullptr ||
      kwargs->AsArray()->size() != ids.size()) {
    doc.Refuse("kwargs", "an array with one object an instruction");
  }
  NIBBLE_TRY_VOID(doc.status());
  std::vector<InstructionCheck> checks;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const json::Object* arguments = kwargs->AsArray()->at(i).AsObject();
    NIBBLE_TRY(check, InstructionCheck::Create(ids[i], arguments ? *arguments : json::Object()));
    checks.push_back(std::move(check));
  }
  return checks;
}

Result<std::vector<double>> Score(const TaskItem& item, std::span<const RequestResult> results) {
  DocReader doc(item.doc, item.id);
  NIBBLE_TRY(checks, ReadChecks(doc));
  double judged = 0.0, strict = 0.0, loose = 0.0;
  for (const InstructionCheck& check : checks) {
    if (check.judges()) {
      judged += 1.0;
      strict += check.FollowsStrictly(results[0].text) ? 1.0 : 0.0;
      loose += check.FollowsLoosely(results[0].text) ? 1.0 : 0.0;
    }
  }
  const bool all_judged = judged == static_cast<double>(checks.size());
  return std::vector{all_judged ? 1.0 : 0.0,
                     all_judged && strict == judged ? 1.0 : 0.0,
                     all_judged && loose == judged ? 1.0 : 0.0,
                     judged,
                     strict,
                     loose};
}

// sum of `part` over sum of `whole`; the standard error of such a ratio over items that may differ
// in size (linearized).
Estimate RatioOf(std::span<const ItemScore> items, Value part, Value whole) {
  double parts = 0.0, wholes = 0.0;
  for (const ItemScore& item : items) {
    parts += item.values[part];
    wholes += item.values[whole];
  }
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  if (wholes == 0.0) {
    return {.value = kUnknown, .standard_error = kUnknown};
  }
  Estimate estimate{.value = parts / wholes, .standard_error = kUnknown};
  if (items.size() > 1) {
    double squares = 0.0;
    for (const ItemScore& item : items) {
      const double residual = item.values[part] - estimate.value * item.values[whole];
      squares += residual * residual;
    }
    const auto n = static_cast<double>(items.size());
    estimate.standard_error = std::sqrt(squares * n / (n - 1.0)) / wholes;
  }
  return estimate;
}

Metric RatioMetric(const char* name, Value part, Value whole) {
  return {.name = name, .aggregate = [part, whole](std::span<const ItemScore> items) {
            return RatioOf(items, part, whole);
          }};
}

// "24 of 379 instructions are not judged: 13 language:response_language (...), ..."
Result<std::string> NoteOnUnjudged(const Task& task) {
  std::map<std::string, int> reasons;
  int instructions = 0, unjudged = 0;
  for (const TaskItem& item : task.items) {
    DocReader doc(item.doc, item.id);
    auto checks = ReadChecks(doc);
    if (!checks) {
      return Fail(std::move(checks.error()), fmt::format("{}, key {}: ", task.data_file, item.id));
    }
    for (const InstructionCheck& check : *checks) {
      ++instructions;
      if (!check.judges()) {
        ++unjudged;
        ++reasons[check.reason()];
      }
    }
  }
  std::vector<std::string> parts;
  for (const auto& [reason, count] : reasons) {
    parts.push_back(fmt::format("{} ({})", reason, count));
  }
  return fmt::format("{} of {} instructions are not judged and count nowhere: {}", unjudged,
                     instructions, fmt::join(parts, ", "));
}

}  // namespace

Result<Task> LoadIfeval(const std::filesystem::path& data_dir) {
  Task task{.name = "ifeval", .kind = RequestKind::kGenerate};
  NIBBLE_TRY(data, ReadDataFile(data_dir, "ifeval/ifeval.jsonl"));
  NIBBLE_TRY_VOID(AddItems(
      data,
      [](DocReader& doc) {
        TaskItem item{.id = doc.Id("key"), .doc = doc.doc()};
        item.requests = {{.context = doc.String("prompt"), .max_tokens = 1280}};
        return item;
      },
      task));
  NIBBLE_TRY(note, NoteOnUnjudged(task));
  task.notes = {std::move(note)};
  task.value_names = {"prompt_judged", "prompt_strict", "prompt_loose",
                      "judged",        "strict",        "loose"};
  task.score = Score;
  task.metrics = {RatioMetric("prompt_level_strict_acc", kPromptStrict, kPromptJudged),
                  RatioMetric("inst_level_strict_acc", kStrict, kJudged),
                  RatioMetric("prompt_level_loose_acc", kPromptLoose, kPromptJudged),
                  RatioMetric("inst_level_loose_acc", kLoose, kJudged)};
  return task;
}

}  // namespace nibble
