#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "eval/encode_request.h"
#include "eval/task.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

/// An item's requests as tokens, beside Task::items.
using EncodedItem = std::vector<EncodedRequest>;

/// Errors: what encoding gives, naming task and item.
Result<std::vector<EncodedItem>> EncodeItems(const Task& task, const Tokenizer& tokenizer,
                                             const EncodeRules& rules);

/// The longest sequence that running them takes, output included.
std::int64_t MaxPositions(const Task& task, std::span<const EncodedItem> items);

/// What is known of an item once its requests are answered.
struct ItemRecord {
  std::vector<RequestResult> results;
  std::vector<double> values;  // Task::score's
};

struct TaskProgress {
  std::uint64_t done_tokens = 0, num_tokens = 0;  // to be computed: what is shared counts once
  std::size_t done_items = 0, num_items = 0;
};

struct TaskCallbacks {
  /// An item is done; in the order of their ends, not of the file.
  std::function<Result<void>(std::size_t item, ItemRecord record)> on_item;
  /// Told now and then; false stops the run (kCancelled).
  std::function<bool(const TaskProgress&)> on_progress{};
};

/// Runs the items `todo` of a task through an idle engine, as many requests at once as it takes,
/// and scores them. Requests that begin alike wait for the first of them and reuse its blocks of
/// the KV cache. Errors: kCancelled; an engine that fails; Task::score's.
Result<void> RunTask(Engine& engine, const Task& task, std::span<const EncodedItem> items,
                     std::span<const std::size_t> todo, const TaskCallbacks& callbacks);

}  // namespace nibble
