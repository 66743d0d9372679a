#pragma once

#include <span>

#include "eval/task_registry.h"

namespace nibble {

/// Tasks answered by the likelihood of given texts: LAMBADA, ARC, HellaSwag, PIQA, WinoGrande,
/// BoolQ, OpenBookQA, MMLU. Prompts and scores are those of lm-evaluation-harness 0.4.13: acc takes
/// the likeliest choice, acc_norm divides log-likelihoods by the choice's characters first,
/// acc_bytes by its bytes; LAMBADA's acc wants the whole last word to be the greedy one.
std::span<const TaskEntry> MultipleChoiceTasks();

}  // namespace nibble
