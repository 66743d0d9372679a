#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "json/value.h"

/// An evaluation task as plain data: requests to a model, and how its answers become numbers. Who
/// builds a Task knows its prompts (multiple_choice.h); who runs it (task_runner.h) knows engine
/// and tokenizer; neither knows the other.
namespace nibble {

/// What a task asks of the model.
enum class RequestKind : std::uint8_t {
  kLogLikelihood,  // how likely is the continuation after the context?
  kGenerate,       // what comes after the context, greedily?
};

struct TaskRequest {
  std::string context;
  std::string continuation{};  // kLogLikelihood: what is scored, with its leading blank
  // kGenerate:
  std::int32_t max_tokens = 256;
  std::vector<std::string> stop{};
};

struct RequestResult {
  double logprob = 0.0;         // kLogLikelihood: of the continuation's tokens together, nats
  bool is_greedy = false;       // kLogLikelihood: each of them is the most likely one
  std::int32_t num_tokens = 0;  // scored or generated
  bool is_truncated = false;    // the context's beginning did not fit and was cut off
  std::string text{};           // kGenerate
};

/// One item of a data file.
struct TaskItem {
  std::string id;                       // unique in its task
  std::string group{};                  // MMLU: the subject; empty: the task has none
  std::vector<TaskRequest> requests{};  // multiple choice: one a choice
  std::int64_t answer = 0;              // multiple choice: the right one of them
  json::Value doc{};                    // the file's line, where a scorer reads more of it
};

/// What an item's answers are worth: one value for each of Task::value_names.
struct ItemScore {
  std::string group{};
  std::vector<double> values{};
};

struct Estimate {
  double value = 0.0;
  double standard_error = 0.0;  // NaN: not to be had from so few items
};

/// A number over the items of a task.
struct Metric {
  std::string name;
  std::function<Estimate(std::span<const ItemScore>)> aggregate;  // of at least one item
  bool higher_is_better = true;
};

struct Task {
  std::string name;
  RequestKind kind = RequestKind::kLogLikelihood;
  std::int32_t num_fewshot = 0;
  std::string data_file{};           // its name, for reports
  std::string data_sha256{};         // of all files that were read
  std::vector<std::string> notes{};  // what a reader of the numbers must know
  std::vector<TaskItem> items{};
  std::vector<std::string> value_names{};
  /// The values of one item from its requests' results.
  std::function<Result<std::vector<double>>(const TaskItem&, std::span<const RequestResult>)>
      score{};
  std::vector<Metric> metrics{};
};

}  // namespace nibble
