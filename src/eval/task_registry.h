#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "eval/task.h"

namespace nibble {

/// A task that is known by name.
struct TaskEntry {
  const char* name;
  const char* summary;
  Result<Task> (*load)(const std::filesystem::path& data_dir);
};

/// All of them, in the order of the documentation.
std::vector<TaskEntry> KnownTasks();

/// Errors: kInvalidArgument for an unknown name, listing the known ones; what reading the data
/// gives.
Result<Task> LoadTask(std::string_view name, const std::filesystem::path& data_dir);

}  // namespace nibble
