#include "cli/generate.h"

#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "cli/progress.h"

namespace nibble::cli {
namespace {

// Collects the events of one choice; the engine runs on the same thread, so there is nothing to
// guard.
class Collector final : public OutputSink {
 public:
  explicit Collector(const std::function<void(std::string_view)>& on_text) : on_text_(on_text) {}

  void OnOutput(OutputEvent event) override {
    if (out.tokens.empty() && !event.tokens.empty()) {
      first = SystemClock().Now();
    }
    out.text += event.text;
    out.tokens.insert(out.tokens.end(), event.tokens.begin(), event.tokens.end());
    out.num_prompt_tokens = event.num_prompt_tokens;
    if (!event.text.empty() && on_text_) {
      on_text_(event.text);
    }
    if (event.finish) {
      out.finish = *event.finish;
      error = event.error;
      ended = true;
    }
  }

  Generated out;
  std::string error;
  Clock::TimePoint first;
  bool ended = false;

 private:
  const std::function<void(std::string_view)>& on_text_;
};

}  // namespace

Result<Generated> GenerateHere(Engine& engine, GenerationRequest request,
                               const std::function<void(std::string_view)>& on_text) {
  const auto sink = std::make_shared<Collector>(on_text);
  const Clock::TimePoint begin = SystemClock().Now();
  NIBBLE_TRY(id, engine.Submit(std::move(request), sink));
  while (!sink->ended) {
    if (Progress::interrupted()) {
      engine.Cancel(id);
    }
    engine.Step();
  }
  if (sink->out.finish == FinishReason::kError || sink->out.finish == FinishReason::kRejected) {
    return Fail(ErrorCode::kInternal, sink->error);
  }
  using Seconds = std::chrono::duration<double>;
  sink->out.seconds = Seconds(SystemClock().Now() - begin).count();
  sink->out.seconds_to_first =
      sink->out.tokens.empty() ? 0.0 : Seconds(sink->first - begin).count();
  return std::move(sink->out);
}

}  // namespace nibble::cli
