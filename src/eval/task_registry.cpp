#include "eval/task_registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "base/text.h"
#include "eval/generation_tasks.h"
#include "eval/multiple_choice.h"

namespace nibble {

std::vector<TaskEntry> KnownTasks() {
  const std::span<const TaskEntry> choice = MultipleChoiceTasks(), generation = GenerationTasks();
  std::vector<TaskEntry> all(choice.begin(), choice.end());
  all.insert(all.end(), generation.begin(), generation.end());
  return all;
}

Result<Task> LoadTask(std::string_view name, const std::filesystem::path& data_dir) {
  const std::vector<TaskEntry> known = KnownTasks();
  const auto found =
      std::ranges::find_if(known, [&](const auto& entry) { return entry.name == name; });
  if (found == known.end()) {
    std::vector<std::string_view> names;
    std::ranges::transform(known, std::back_inserter(names), &TaskEntry::name);
    return Fail(ErrorCode::kInvalidArgument, fmt::format("--tasks: {} is no task; there are {}",
                                                         Quote(name), fmt::join(names, ", ")));
  }
  return found->load(data_dir);
}

}  // namespace nibble
