#pragma once

#include <span>

#include "eval/task_registry.h"

namespace nibble {

/// Tasks answered by a text: GSM8K, HumanEval, MBPP, IFEval, SciTLDR, FLORES-200 from and to
/// English. Prompts, ends and limits are those of lm-evaluation-harness 0.4.13 where it has the
/// task; greedy.
std::span<const TaskEntry> GenerationTasks();

}  // namespace nibble
