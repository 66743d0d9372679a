#pragma once

#include <filesystem>

#include "base/result.h"
#include "eval/task.h"

namespace nibble {

/// Tasks whose answers are Python programs, run in a PythonSandbox. Errors, besides what reading
/// the data gives: kUnavailable if this machine has no python3 or cannot hold a program safely.
Result<Task> LoadHumanEval(const std::filesystem::path& data_dir);
Result<Task> LoadMbpp(const std::filesystem::path& data_dir);

}  // namespace nibble
