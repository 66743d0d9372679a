#include "eval/task_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/text.h"
#include "eval/prefix_plan.h"

namespace nibble {
namespace {

// One request on its way: which item's, and who waits for it.
struct Pending {
  std::size_t item = 0, request = 0;  // item: among all of the task's
  std::int64_t cost_tokens = 0;
  std::vector<std::size_t> children{};
};

// Keeps what came of a request; the engine runs on the same thread.
class ResultSink final : public OutputSink {
 public:
  ResultSink(std::size_t pending, std::int32_t first_scored, std::vector<std::size_t>& ended)
      : pending_(pending), first_scored_(first_scored), ended_(ended) {}

  void OnOutput(OutputEvent event) override {
    result.text += event.text;
    for (auto t = static_cast<std::size_t>(first_scored_); t < event.prompt_logprobs.size(); ++t) {
      result.logprob += static_cast<double>(event.prompt_logprobs[t].logprob);
      result.is_greedy = result.is_greedy && event.prompt_logprobs[t].rank == 1;
      ++result.num_tokens;
    }
    if (event.finish) {
      if (first_scored_ == 0) {
        result.num_tokens = event.num_output_tokens;
      }
      finish = *event.finish;
      error = std::move(event.error);
      ended_.push_back(pending_);
    }
  }

  RequestResult result{.is_greedy = true};
  std::optional<FinishReason> finish;
  std::string error;

 private:
  std::size_t pending_;
  std::int32_t first_scored_;
  std::vector<std::size_t>& ended_;
};

class TaskRun {
 public:
  TaskRun(Engine& engine, const Task& task, std::span<const EncodedItem> items,
          const TaskCallbacks& callbacks)
      : engine_(engine), task_(task), items_(items), callbacks_(callbacks) {}

  Result<void> Go(std::span<const std::size_t> todo) {
    Plan(todo);
    const Result<void> run = Loop();
    for (std::size_t i = 0; i < sinks_.size(); ++i) {
      if (sinks_[i] != nullptr) {
        engine_.Cancel(ids_[i]);
      }
    }
    while (engine_.Step()) {
    }
    return run;
  }

 private:
  const EncodedRequest& Encoded(const Pending& pending) const {
    return items_[pending.item][pending.request];
  }

  void Plan(std::span<const std::size_t> todo) {
    std::vector<std::span<const TokenId>> prompts;
    for (const std::size_t item : todo) {
      for (std::size_t request = 0; request < items_[item].size(); ++request) {
        pending_.push_back({.item = item, .request = request});
        prompts.emplace_back(items_[item][request].tokens);
      }
    }
    open_.resize(items_.size());
    records_.resize(items_.size());
    for (const std::size_t item : todo) {
      open_[item] = items_[item].size();
      records_[item].results.resize(items_[item].size());
    }
    progress_.num_items = todo.size();
    sinks_.resize(pending_.size());
    ids_.resize(pending_.size());
    const PrefixPlan plan = PlanPrefixes(prompts, engine_.config().block_size_tokens);
    for (const PrefixPlan::Step& step : plan.steps) {
      Pending& pending = pending_[step.prompt];
      pending.cost_tokens = std::ssize(prompts[step.prompt]) - step.shared_tokens;
      if (task_.kind == RequestKind::kGenerate) {
        pending.cost_tokens += task_.items[pending.item].requests[pending.request].max_tokens;
      }
      progress_.num_tokens += static_cast<std::uint64_t>(pending.cost_tokens);
      if (step.parent != PrefixPlan::kNone && engine_.config().enable_prefix_caching) {
        pending_[step.parent].children.push_back(step.prompt);
      } else {
        ready_.push_back(step.prompt);
      }
    }
    std::ranges::reverse(ready_);  // taken from the back
  }

  Result<void> Loop() {
    std::size_t num_done = 0;
    while (num_done < pending_.size()) {
      while (!ready_.empty() && num_running_ < engine_.config().max_num_sequences) {
        const std::size_t next = ready_.back();
        ready_.pop_back();
        NIBBLE_TRY_VOID(Submit(next));
      }
      const bool stepped = engine_.Step();
      NIBBLE_CHECK(stepped || !ended_.empty(),
                   "requests are open and the engine has nothing to do");
      for (const std::size_t ended : std::exchange(ended_, {})) {
        NIBBLE_TRY_VOID(Finish(ended));
        ++num_done;
      }
      if (callbacks_.on_progress && !callbacks_.on_progress(progress_)) {
        return Fail(ErrorCode::kCancelled, "the evaluation was interrupted");
      }
    }
    return {};
  }

  Result<void> Submit(std::size_t index) {
    const Pending& pending = pending_[index];
    const EncodedRequest& encoded = Encoded(pending);
    const TaskRequest& asked = task_.items[pending.item].requests[pending.request];
    GenerationRequest request{.external_id = {}, .prompt = encoded.tokens};
    request.sampling.temperature = 0.0F;
    if (task_.kind == RequestKind::kLogLikelihood) {
      request.sampling.max_tokens = 0;
      request.sampling.num_prompt_logprobs = 0;
      request.sampling.first_prompt_logprob = encoded.first_scored;
    } else {
      request.sampling.max_tokens = asked.max_tokens;
      request.sampling.stop = asked.stop;
    }
    sinks_[index] = std::make_shared<ResultSink>(index, encoded.first_scored, ended_);
    NIBBLE_TRY(id, engine_.Submit(std::move(request), sinks_[index]));
    ids_[index] = id;
    ++num_running_;
    return {};
  }

  Result<void> Finish(std::size_t index) {
    const Pending& pending = pending_[index];
    const auto sink = std::exchange(sinks_[index], nullptr);
    --num_running_;
    if (sink->finish != FinishReason::kStop && sink->finish != FinishReason::kLength) {
      return Fail(ErrorCode::kInternal,
                  fmt::format("{}, item {}: {} {}", task_.name, Quote(task_.items[pending.item].id),
                              Name(*sink->finish), sink->error));
    }
    sink->result.is_truncated = Encoded(pending).is_truncated;
    sink->result.is_greedy = sink->result.is_greedy && task_.kind == RequestKind::kLogLikelihood;
    records_[pending.item].results[pending.request] = std::move(sink->result);
    progress_.done_tokens += static_cast<std::uint64_t>(pending.cost_tokens);
    // Before others: what they reuse is in the cache now.
    ready_.insert(ready_.end(), pending.children.rbegin(), pending.children.rend());
    if (--open_[pending.item] > 0) {
      return {};
    }
    ItemRecord record = std::move(records_[pending.item]);
    NIBBLE_TRY(values, task_.score(task_.items[pending.item], record.results));
    NIBBLE_CHECK(values.size() == task_.value_names.size(), "a score without its names");
    record.values = std::move(values);
    ++progress_.done_items;
    return callbacks_.on_item(pending.item, std::move(record));
  }

  Engine& engine_;
  const Task& task_;
  std::span<const EncodedItem> items_;
  const TaskCallbacks& callbacks_;
  std::vector<Pending> pending_;
  std::vector<std::shared_ptr<ResultSink>> sinks_;  // beside pending_; null: not running
  std::vector<RequestId> ids_;                      // beside pending_
  std::vector<std::size_t> ready_;                  // the next is the last
  std::vector<std::size_t> ended_;                  // since the last step
  std::vector<std::size_t> open_;                   // requests of each item
  std::vector<ItemRecord> records_;                 // of items under way
  std::int32_t num_running_ = 0;
  TaskProgress progress_;
};

}  // namespace

Result<std::vector<EncodedItem>> EncodeItems(const Task& task, const Tokenizer& tokenizer,
                                             const EncodeRules& rules) {
  std::vector<EncodedItem> items;
  for (const TaskItem& item : task.items) {
    EncodedItem& encoded = items.emplace_back();
    for (const TaskRequest& request : item.requests) {
      auto one = task.kind == RequestKind::kLogLikelihood
                     ? EncodeLogLikelihood(request, tokenizer, rules)
                     : EncodePrompt(request, tokenizer, rules);
      if (!one) {
        return Fail(one.error(), fmt::format("{}, item {}: ", task.name, Quote(item.id)));
      }
      encoded.push_back(std::move(*one));
    }
  }
  return items;
}

std::int64_t MaxPositions(const Task& task, std::span<const EncodedItem> items) {
  std::int64_t longest = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    for (std::size_t r = 0; r < items[i].size(); ++r) {
      const std::int64_t output =
          task.kind == RequestKind::kGenerate ? task.items[i].requests[r].max_tokens : 0;
      longest = std::max(longest, std::ssize(items[i][r].tokens) + output);
    }
  }
  return longest;
}

Result<void> RunTask(Engine& engine, const Task& task, std::span<const EncodedItem> items,
                     std::span<const std::size_t> todo, const TaskCallbacks& callbacks) {
  return TaskRun(engine, task, items, callbacks).Go(todo);
}

}  // namespace nibble
