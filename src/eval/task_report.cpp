#include "eval/task_report.h"

#include <algorithm>

namespace nibble {
namespace {

Estimates Aggregate(const Task& task, std::span<const ItemScore> scores) {
  Estimates estimates;
  for (const Metric& metric : task.metrics) {
    estimates.emplace_back(metric.name, metric.aggregate(scores));
  }
  return estimates;
}

json::Object EstimatesToJson(const Estimates& estimates) {
  json::Object out;
  for (const auto& [name, estimate] : estimates) {
    json::Object one;
    one.Set("value", estimate.value);
    one.Set("stderr", estimate.standard_error);
    out.Set(name, std::move(one));
  }
  return out;
}

json::Object ResultToJson(RequestKind kind, const RequestResult& result) {
  json::Object out;
  if (kind == RequestKind::kLogLikelihood) {
    out.Set("logprob", result.logprob);
    out.Set("is_greedy", result.is_greedy);
  } else {
    out.Set("text", result.text);
  }
  out.Set("tokens", std::int64_t{result.num_tokens});
  return out;
}

}  // namespace

TaskReport Summarize(const Task& task, std::span<const ItemRecord> records) {
  TaskReport report{.num_items = std::ssize(records)};
  std::vector<ItemScore> scores;
  std::map<std::string, std::vector<ItemScore>> groups;
  for (std::size_t i = 0; i < records.size(); ++i) {
    scores.push_back({.group = task.items[i].group, .values = records[i].values});
    if (!task.items[i].group.empty()) {
      groups[task.items[i].group].push_back(scores.back());
    }
    report.num_truncated +=
        std::ranges::any_of(records[i].results, &RequestResult::is_truncated) ? 1 : 0;
  }
  report.metrics = Aggregate(task, scores);
  for (const auto& [group, members] : groups) {
    report.groups[group] = Aggregate(task, members);
  }
  return report;
}

json::Object ToJson(const Task& task, const TaskReport& report) {
  json::Object out;
  out.Set("num_items", report.num_items);
  out.Set("num_truncated", report.num_truncated);
  out.Set("num_fewshot", std::int64_t{task.num_fewshot});
  out.Set("data", task.data_file);
  out.Set("data_sha256", task.data_sha256);
  json::Array notes(task.notes.begin(), task.notes.end());
  out.Set("notes", std::move(notes));
  out.Set("metrics", EstimatesToJson(report.metrics));
  if (!report.groups.empty()) {
    json::Object groups;
    for (const auto& [name, estimates] : report.groups) {
      groups.Set(name, EstimatesToJson(estimates));
    }
    out.Set("groups", std::move(groups));
  }
  return out;
}

json::Array SamplesToJson(const Task& task, std::span<const ItemRecord> records) {
  json::Array samples;
  for (std::size_t i = 0; i < records.size(); ++i) {
    json::Object sample;
    sample.Set("id", task.items[i].id);
    sample.Set("answer", task.items[i].answer);
    for (std::size_t v = 0; v < task.value_names.size(); ++v) {
      sample.Set(task.value_names[v], records[i].values[v]);
    }
    json::Array results;
    for (const RequestResult& result : records[i].results) {
      results.emplace_back(ResultToJson(task.kind, result));
    }
    sample.Set("results", std::move(results));
    samples.emplace_back(std::move(sample));
  }
  return samples;
}

}  // namespace nibble
