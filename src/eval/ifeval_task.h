#pragma once

#include <filesystem>

#include "base/result.h"
#include "eval/task.h"

namespace nibble {

/// IFEval: prompts with instructions that a program can check (instruction_check.h). What is not
/// judged counts nowhere: prompt-level numbers are over prompts whose instructions are all judged.
Result<Task> LoadIfeval(const std::filesystem::path& data_dir);

}  // namespace nibble
