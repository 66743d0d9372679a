#include "eval/task_journal.h"

#include <fmt/format.h>

#include "base/limits.h"
#include "base/sha256.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxJournalBytes = 4096 * limits::kMiB;

// What an item's answers depend on: where the task's data are, and how it asks.
std::string TaskKey(const Task& task) {
  return fmt::format("{} {}-shot {}", task.name, task.num_fewshot, task.data_sha256);
}

json::Value ToValue(const RequestResult& result) {
  json::Object out;
  out.Set("logprob", result.logprob);
  out.Set("greedy", result.is_greedy);
  out.Set("tokens", std::int64_t{result.num_tokens});
  out.Set("truncated", result.is_truncated);
  out.Set("text", result.text);
  return out;
}

// Nothing if a field is missing.
std::optional<RequestResult> ParseResult(const json::Value& value) {
  const json::Value* logprob = value.Find("logprob");
  const json::Value* greedy = value.Find("greedy");
  const json::Value* tokens = value.Find("tokens");
  const json::Value* truncated = value.Find("truncated");
  const json::Value* text = value.Find("text");
  if (logprob == nullptr || !logprob->AsDouble() || greedy == nullptr || !greedy->AsBool() ||
      tokens == nullptr || !tokens->AsInt() || truncated == nullptr || !truncated->AsBool() ||
      text == nullptr || text->AsString() == nullptr) {
    return std::nullopt;
  }
  return RequestResult{.logprob = *logprob->AsDouble(),
                       .is_greedy = *greedy->AsBool(),
                       .num_tokens = static_cast<std::int32_t>(*tokens->AsInt()),
                       .is_truncated = *truncated->AsBool(),
                       .text = *text->AsString()};
}

std::optional<ItemRecord> ParseRecord(const json::Value& line) {
  const json::Value* values = line.Find("values");
  const json::Value* results = line.Find("results");
  if (values == nullptr || values->AsArray() == nullptr || results == nullptr ||
      results->AsArray() == nullptr) {
    return std::nullopt;
  }
  ItemRecord record;
  for (const json::Value& value : *values->AsArray()) {
    if (!value.AsDouble()) {
      return std::nullopt;
    }
    record.values.push_back(*value.AsDouble());
  }
  for (const json::Value& value : *results->AsArray()) {
    auto result = ParseResult(value);
    if (!result) {
      return std::nullopt;
    }
    record.results.push_back(std::move(*result));
  }
  return record;
}

json::Value Header(const json::Value& run) {
  json::Object out;
  out.Set("nibble_eval_journal", 1);
  const std::string text = json::Dump(run);
  out.Set("run_sha256", Sha256Hex(std::as_bytes(std::span(text))));
  out.Set("run", run);
  return out;
}

}  // namespace

Result<std::unique_ptr<TaskJournal>> TaskJournal::Open(const std::filesystem::path& path,
                                                       const json::Value& run) {
  std::unique_ptr<TaskJournal> journal(new TaskJournal);
  NIBBLE_TRY(log, AppendLog::Open(path, kMaxJournalBytes));
  journal->log_ = std::move(log);
  NIBBLE_TRY_VOID(journal->Read(run));
  return journal;
}

Result<void> TaskJournal::Read(const json::Value& run) {
  const auto& lines = log_->lines();
  if (lines.empty()) {
    return log_->Append(json::Dump(Header(run)));
  }
  const auto header = json::Parse(lines.front());
  const json::Value* hash = header ? header->Find("run_sha256") : nullptr;
  if (hash == nullptr || *hash != *Header(run).Find("run_sha256")) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{} holds the items of a run with another model, other flags or "
                            "another version: delete it, or choose another --output",
                            path().string()));
  }
  for (std::size_t i = 1; i < lines.size(); ++i) {
    if (const auto read = ReadLine(lines[i]); !read) {
      return Fail(read.error(), fmt::format("{}:{}: ", path().string(), i + 1));
    }
  }
  return {};
}

Result<void> TaskJournal::ReadLine(std::string_view line) {
  NIBBLE_TRY(value, json::Parse(line));
  const json::Value* task = value.Find("task");
  const json::Value* id = value.Find("id");
  auto record = ParseRecord(value);
  if (task == nullptr || task->AsString() == nullptr || id == nullptr ||
      id->AsString() == nullptr || !record) {
    return Fail(ErrorCode::kCorruptFile, "no item of an evaluation: delete the file");
  }
  records_.insert_or_assign(Key(*task->AsString(), *id->AsString()), std::move(*record));
  return {};
}

const ItemRecord* TaskJournal::Find(const Task& task, const TaskItem& item) const {
  const auto found = records_.find({TaskKey(task), item.id});
  return found == records_.end() || found->second.values.size() != task.value_names.size() ||
                 found->second.results.size() != item.requests.size()
             ? nullptr
             : &found->second;
}

Result<void> TaskJournal::Add(const Task& task, const TaskItem& item, const ItemRecord& record) {
  json::Object line;
  line.Set("task", TaskKey(task));
  line.Set("id", item.id);
  line.Set("values", json::Array(record.values.begin(), record.values.end()));
  json::Array results;
  for (const RequestResult& result : record.results) {
    results.push_back(ToValue(result));
  }
  line.Set("results", std::move(results));
  return log_->Append(json::Dump(line));
}

}  // namespace nibble
