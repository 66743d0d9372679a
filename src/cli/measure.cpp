#include "cli/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "cli/progress.h"

namespace nibble::cli {
namespace {

using Seconds = std::chrono::duration<double>;

// Counts tokens and times of many sequences; the engine runs on the same thread.
class Counter final : public OutputSink {
 public:
  void OnOutput(OutputEvent event) override {
    const Clock::TimePoint now = SystemClock().Now();
    if (!event.tokens.empty()) {
      if (tokens == 0) {
        first = now;
      }
      tokens += static_cast<std::int64_t>(event.tokens.size());
      if (event.num_output_tokens == static_cast<std::int32_t>(event.tokens.size())) {
        last_first = now;
        ++begun;
      }
      last = now;
    }
    if (event.finish) {
      ++ended;
      failed += *event.finish == FinishReason::kLength ? 0 : 1;
    }
  }
  std::int64_t tokens = 0;
  int begun = 0;
  int ended = 0;
  int failed = 0;
  Clock::TimePoint first, last_first, last;
};

// The i-th request: tokens that are another mixture for each.
GenerationRequest MadeUpRequest(const RequestShape& shape, int i, std::int64_t vocab_size) {
  GenerationRequest request{.external_id = "bench"};
  for (std::int64_t t = 0; t < shape.prompt_tokens; ++t) {
    request.prompt.push_back(TokenId{
        static_cast<std::int32_t>(1 + (t * 7919 + std::int64_t{i} * 104729) % (vocab_size - 1))});
  }
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = static_cast<std::int32_t>(shape.output_tokens);
  request.sampling.ignore_eos = true;
  return request;
}

}  // namespace

Result<Measured> RunRequests(Engine& engine, const RequestShape& shape) {
  const auto counter = std::make_shared<Counter>();
  const Clock::TimePoint begin = SystemClock().Now();
  for (int i = 0; i < shape.count; ++i) {
    NIBBLE_TRY(id, engine.Submit(MadeUpRequest(shape, i, engine.config().vocab_size), counter));
    static_cast<void>(id);
  }
  // Steps in which all decode: behind the one in which the last of them begins, to the first end.
  struct Moment {
    Clock::TimePoint time;
    std::int64_t tokens = 0;
  };
  std::optional<Moment> all_begun;
  std::optional<Moment> one_ended;
  while (counter->ended < shape.count) {
    if (Progress::interrupted()) {
      return Fail(ErrorCode::kCancelled, "interrupted");
    }
    engine.Step();
    const Moment now{.time = counter->last, .tokens = counter->tokens};
    if (!all_begun && counter->begun == shape.count) {
      all_begun = now;
    }
    if (!one_ended && counter->ended > 0) {
      one_ended = now;
    }
  }
  if (counter->failed > 0) {
    return Fail(ErrorCode::kInternal, fmt::format("{} of {} sequences did not reach their length",
                                                  counter->failed, shape.count));
  }
  Measured out;
  out.seconds = Seconds(counter->last - begin).count();
  out.seconds_to_first = Seconds(counter->first - begin).count();
  const double all_prefilled = Seconds(counter->last_first - begin).count();
  out.prefill_tokens_per_s = static_cast<double>(shape.prompt_tokens * shape.count) / all_prefilled;
  const Moment all_ended{.time = counter->last, .tokens = counter->tokens};
  const Moment& end = one_ended->tokens > all_begun->tokens ? *one_ended : all_ended;
  out.decode_tokens_per_s = static_cast<double>(end.tokens - all_begun->tokens) /
                            Seconds(end.time - all_begun->time).count();
  out.ms_per_token = 1e3 * shape.count / out.decode_tokens_per_s;
  return out;
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) {
    return 0.0;
  }
  std::ranges::sort(values);
  const double rank = std::ceil(q * static_cast<double>(values.size()));
  return values[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.empty() ? 0.0 : values[values.size() / 2];
}

std::int64_t CardUsedBytes(const Device& device) {
  return static_cast<std::int64_t>(device.TotalBytes()) -
         static_cast<std::int64_t>(device.AvailableBytes());
}

}  // namespace nibble::cli
