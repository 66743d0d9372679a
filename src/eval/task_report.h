#pragma once

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "eval/task.h"
#include "eval/task_runner.h"
#include "json/value.h"

namespace nibble {

/// A task's numbers, by metric in its order.
using Estimates = std::vector<std::pair<std::string, Estimate>>;

struct TaskReport {
  Estimates metrics;
  std::map<std::string, Estimates> groups;  // where items have one
  std::int64_t num_items = 0;
  std::int64_t num_truncated = 0;  // items with a request that lost its beginning
};

/// records: beside task.items, at least one.
TaskReport Summarize(const Task& task, std::span<const ItemRecord> records);

/// {"num_items", "num_fewshot", "data", "data_sha256", "notes", "metrics": {name: {"value",
/// "stderr"}}, "groups"}.
json::Object ToJson(const Task& task, const TaskReport& report);

/// One object an item: its id, its values by name, and what the model answered to each request.
json::Array SamplesToJson(const Task& task, std::span<const ItemRecord> records);

}  // namespace nibble
