#include "cli/eval_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "cli/progress.h"
#include "eval/task_registry.h"

namespace nibble::cli {

void TaskFlags::Declare(OptionSet& options) {
  options.Add("--tasks", &tasks, "tasks to run, comma between; --tasks list shows them");
  options.Add("--data", &data, "the folder with their files, one subfolder a task");
  options.Add("--limit", &limit, "only the first N items of each task (0: all)");
  options.Add("--add-bos-token", &add_bos_token,
              "put the tokenizer's bos token before each prompt (lm-eval's default is not to)");
  options.Add("--apply-chat-template", &apply_chat_template,
              "prompts of tasks that are answered by a text become a user's message in the model's "
              "chat template: for models that are made to chat");
  options.Add("--samples", &samples, "list every item with its answers in the JSON, too");
}

Result<std::vector<ReadyTask>> LoadTasks(const TaskFlags& flags) {
  std::vector<ReadyTask> tasks;
  if (flags.tasks.empty()) {
    return tasks;
  }
  if (flags.data.empty()) {
    return Fail(ErrorCode::kInvalidArgument, "--tasks needs --data DIR, where their files are");
  }
  if (flags.limit < 0) {
    return Fail(ErrorCode::kInvalidArgument, "--limit takes 0 or more");
  }
  const std::string_view all = flags.tasks;
  for (std::size_t at = 0; at <= all.size();) {
    const std::size_t end = std::min(all.find(',', at), all.size());
    std::string_view name = all.substr(at, end - at);
    at = end + 1;
    name.remove_prefix(std::min(name.find_first_not_of(' '), name.size()));
    name = name.substr(0, name.find_last_not_of(' ') + 1);
    if (std::ranges::any_of(tasks, [&](const auto& other) { return other.task.name == name; })) {
      return Fail(ErrorCode::kInvalidArgument, fmt::format("--tasks names {} twice", name));
    }
    NIBBLE_TRY(task, LoadTask(name, flags.data));
    if (flags.limit > 0 && flags.limit < std::ssize(task.items)) {
      task.items.resize(static_cast<std::size_t>(flags.limit));
    }
    tasks.push_back({.task = std::move(task), .items = {}});
  }
  return tasks;
}

Result<std::int64_t> EncodeTasks(const Tokenizer& tokenizer, const EncodeRules& rules,
                                 std::vector<ReadyTask>& tasks) {
  std::int64_t longest = 0;
  for (ReadyTask& ready : tasks) {
    NIBBLE_TRY(items, EncodeItems(ready.task, tokenizer, rules));
    ready.items = std::move(items);
    longest = std::max(longest, MaxPositions(ready.task, ready.items));
  }
  return longest;
}

Result<std::vector<ItemRecord>> RunReadyTask(Engine& engine, const ReadyTask& ready,
                                             TaskJournal* journal) {
  const Task& task = ready.task;
  std::vector<ItemRecord> records(task.items.size());
  std::vector<std::size_t> todo;
  for (std::size_t i = 0; i < task.items.size(); ++i) {
    const ItemRecord* known = journal != nullptr ? journal->Find(task, task.items[i]) : nullptr;
    if (known != nullptr) {
      records[i] = *known;
    } else {
      todo.push_back(i);
    }
  }
  if (todo.size() < records.size()) {
    fmt::print(stderr, "{}: {} of {} items are in {}\n", task.name, records.size() - todo.size(),
               records.size(), journal->path().string());
  }
  Progress progress(task.name);
  const TaskCallbacks callbacks{
      .on_item = [&](std::size_t item, ItemRecord record) -> Result<void> {
        if (journal != nullptr) {
          NIBBLE_TRY_VOID(journal->Add(task, task.items[item], record));
        }
        records[item] = std::move(record);
        return {};
      },
      .on_progress =
          [&](const TaskProgress& now) {
            return progress.Update(now.done_tokens, now.num_tokens,
                                   fmt::format("{} of {} items", now.done_items, now.num_items));
          }};
  NIBBLE_TRY_VOID(RunTask(engine, task, ready.items, todo, callbacks));
  progress.Finish();
  return records;
}

void PrintTask(const Task& task, const TaskReport& report) {
  for (const auto& [name, estimate] : report.metrics) {
    fmt::print("{:<16}{:<12}{:>10.4f} +- {:.4f}   ({} items, {}-shot)\n", task.name, name,
               estimate.value, estimate.standard_error, report.num_items, task.num_fewshot);
  }
  if (report.num_truncated > 0) {
    fmt::print("{:<16}{} items were longer than the context and lost their beginning\n", "",
               report.num_truncated);
  }
}

}  // namespace nibble::cli
