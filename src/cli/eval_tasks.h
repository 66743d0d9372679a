#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "cli/command.h"
#include "cli/session.h"
#include "eval/task.h"
#include "eval/task_journal.h"
#include "eval/task_report.h"
#include "eval/task_runner.h"
#include "json/value.h"

namespace nibble::cli {

/// What `nibble eval` is told about tasks.
struct TaskFlags {
  std::string tasks;  // names, comma between
  std::string data;   // the folder that has their files
  std::int64_t limit = 0;
  bool add_bos_token = false;
  bool apply_chat_template = false;  // to prompts that are answered by a text
  bool samples = false;              // items in the JSON, too

  void Declare(OptionSet& options);
};

/// A task with its requests as tokens.
struct ReadyTask {
  Task task;
  std::vector<EncodedItem> items;
};

/// The tasks that the flags name, cut to --limit items each. Errors: kInvalidArgument for flags;
/// what reading data gives.
Result<std::vector<ReadyTask>> LoadTasks(const TaskFlags& flags);

/// Tokenizes all of them; the longest sequence that results.
Result<std::int64_t> EncodeTasks(const Tokenizer& tokenizer, const EncodeRules& rules,
                                 std::vector<ReadyTask>& tasks);

/// Runs what the journal (null: there is none) does not have yet, with progress on standard error.
Result<std::vector<ItemRecord>> RunReadyTask(Engine& engine, const ReadyTask& ready,
                                             TaskJournal* journal);

/// The table's rows of a task.
void PrintTask(const Task& task, const TaskReport& report);

}  // namespace nibble::cli
