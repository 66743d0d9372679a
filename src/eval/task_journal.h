#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/result.h"
#include "eval/task.h"
#include "eval/task_runner.h"
#include "io/append_log.h"
#include "json/value.h"

namespace nibble {

/// The finished items of an evaluation on disk, so that a run that was stopped goes on where it
/// was. A line an item; the first line says what run they belong to.
class TaskJournal {
 public:
  /// run: all that the answers depend on besides the tasks: model, flags, version. Errors:
  /// kInvalidArgument if the file belongs to another run; kCorruptFile; as AppendLog.
  static Result<std::unique_ptr<TaskJournal>> Open(const std::filesystem::path& path,
                                                   const json::Value& run);

  /// What is known of an item of this task, of these data and prompts; nullptr: nothing.
  const ItemRecord* Find(const Task& task, const TaskItem& item) const;
  Result<void> Add(const Task& task, const TaskItem& item, const ItemRecord& record);
  std::size_t num_items() const { return records_.size(); }
  const std::filesystem::path& path() const { return log_->path(); }
  /// All is done and written elsewhere.
  Result<void> Remove() { return log_->Remove(); }

 private:
  using Key = std::pair<std::string, std::string>;  // what the task is, item id
  Result<void> Read(const json::Value& run);
  Result<void> ReadLine(std::string_view line);

  std::unique_ptr<AppendLog> log_;
  std::map<Key, ItemRecord> records_;
};

}  // namespace nibble
