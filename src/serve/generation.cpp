#include "serve/generation.h"

#include <utility>

namespace nibble {

// A queue that kept someone waiting for its whole limit is not empty a second later.
constexpr int kOverloadedRetryAfterS = 5;

bool GenerationRegistry::Add(const std::shared_ptr<Generation>& generation,
                             const std::string& tenant, int max_per_tenant) {
  const std::lock_guard lock(mutex_);
  int& count = per_tenant_[tenant];
  if (max_per_tenant > 0 && count >= max_per_tenant) {
    return false;
  }
  ++count;
  if (active_.empty()) {
    busy_since_ = SystemClock().Now();
  }
  active_.emplace(generation.get(), generation);
  return true;
}

void GenerationRegistry::Remove(Generation* generation, const std::string& tenant) {
  std::shared_ptr<Generation> last;  // released after the lock
  const std::lock_guard lock(mutex_);
  const auto found = active_.find(generation);
  if (found == active_.end()) {
    return;
  }
  last = std::move(found->second);
  active_.erase(found);
  const auto count = per_tenant_.find(tenant);
  if (count != per_tenant_.end() && --count->second == 0) {
    per_tenant_.erase(count);
  }
}

std::size_t GenerationRegistry::size() const {
  const std::lock_guard lock(mutex_);
  return active_.size();
}

std::optional<Clock::TimePoint> GenerationRegistry::busy_since() const {
  const std::lock_guard lock(mutex_);
  return active_.empty() ? std::nullopt : std::optional(busy_since_);
}

void GenerationRegistry::ShutdownAll() {
  std::vector<std::shared_ptr<Generation>> all;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [raw, generation] : active_) {
      all.push_back(generation);
    }
  }
  for (const auto& generation : all) {
    generation->Shutdown();
  }
}

// Engine thread -> I/O thread, for one prompt.
class Generation::PromptSink final : public OutputSink {
 public:
  PromptSink(std::shared_ptr<Generation> generation, std::size_t prompt)
      : generation_(std::move(generation)), executor_(generation_->executor_), prompt_(prompt) {}

  void OnOutput(OutputEvent event) override {
    executor_->Post([generation = generation_, prompt = prompt_,
                     moved = std::make_shared<OutputEvent>(std::move(event))] {
      generation->OnEvent(prompt, std::move(*moved));
    });
  }

 private:
  std::shared_ptr<Generation> generation_;
  std::shared_ptr<IoExecutor> executor_;
  std::size_t prompt_;
};

Generation::Generation(const Services& services, ApiRequest request, std::string tenant,
                       std::shared_ptr<ResponseWriter> writer)
    : services_(services),
      request_(std::move(request)),
      tenant_(std::move(tenant)),
      writer_(std::move(writer)),
      executor_(writer_->executor()),
      stream_(request_, services_.text) {
  prompts_.resize(request_.requests.size());
  for (PromptState& prompt : prompts_) {
    prompt.choices.resize(static_cast<std::size_t>(request_.n));
  }
  num_open_ = prompts_.size() * static_cast<std::size_t>(request_.n);
}

void Generation::Start(const Services& services, ApiRequest request, std::string tenant,
                       std::shared_ptr<ResponseWriter> writer) {
  const auto generation = std::make_shared<Generation>(services, std::move(request),
                                                       std::move(tenant), std::move(writer));
  if (!services.registry.Add(generation, generation->tenant_, services.max_requests_per_tenant)) {
    generation->ended_ = true;
    generation->writer_->Respond(ErrorResponse(
        MakeApiError(429, "Too many requests of this key are in flight: try again later.")));
    return;
  }
  if (const auto error = generation->SubmitAll()) {
    generation->Fail(*error);
    return;
  }
  generation->writer_->OnAbort([weak = std::weak_ptr(generation)] {
    if (const auto alive = weak.lock()) {
      alive->CancelAll();
      alive->End();
    }
  });
  if (generation->request_.stream) {
    generation->writer_->OnDrained([weak = std::weak_ptr(generation)] {
      if (const auto alive = weak.lock()) {
        alive->OnDrained();
      }
    });
    // At once, also while queued: some clients give up when no head comes.
    generation->writer_->BeginStream(
        {.status = 200,
         .content_type = "text/event-stream; charset=utf-8",
         .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
}

std::optional<ApiError> Generation::SubmitAll() {
  for (std::size_t p = 0; p < request_.requests.size(); ++p) {
    auto id = services_.engine.Submit(request_.requests[p],
                                      std::make_shared<PromptSink>(shared_from_this(), p));
    if (!id) {
      return FromError(id.error());
    }
    ids_.push_back(*id);
  }
  return std::nullopt;
}

void Generation::OnEvent(std::size_t prompt, OutputEvent event) {
  if (ended_ || event.choice < 0 || event.choice >= request_.n) {
    return;
  }
  if (event.finish) {
    switch (*event.finish) {
      case FinishReason::kStop:
      case FinishReason::kLength:
      case FinishReason::kCancelled:
        break;
      case FinishReason::kDeadline:
        return Fail(MakeApiError(504, "The request took too long."));
      case FinishReason::kQueueTimeout: {
        ApiError error =
            MakeApiError(503, "The server is overloaded: the request waited too long to begin.");
        error.retry_after_s = kOverloadedRetryAfterS;
        return Fail(error);
      }
      case FinishReason::kShutdown:
        return Fail(MakeApiError(503, "The server is shutting down."));
      case FinishReason::kRejected:
        return Fail(
            MakeApiError(400, event.error.empty() ? "The request cannot be run." : event.error));
      case FinishReason::kError:
        return Fail(MakeApiError(
            500, event.error.empty() ? "The server failed to process the request." : event.error));
    }
  }
  if (event.finish) {
    --num_open_;
  }
  Apply(event, request_, prompts_[prompt]);
  if (request_.stream) {
    if (!held_.empty() || writer_->buffered_bytes() > services_.stream_buffer_bytes) {
      Hold(prompt, std::move(event));
    } else {
      Write(prompt, event);
    }
  }
  FinishIfComplete();
}

void Generation::Write(std::size_t prompt, const OutputEvent& event) {
  for (const std::string& bytes : stream_.OnEvent(prompts_, prompt, event)) {
    writer_->WriteEvent(bytes);
  }
}

void Generation::Hold(std::size_t prompt, OutputEvent event) {
  const auto [entry, fresh] = held_.try_emplace({prompt, event.choice});
  OutputEvent& held = entry->second;
  if (fresh) {
    held = std::move(event);
    return;
  }
  held.text += event.text;
  held.tokens.insert(held.tokens.end(), event.tokens.begin(), event.tokens.end());
  held.logprobs.insert(held.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  held.finish = event.finish;
  held.stop_reason = std::move(event.stop_reason);
}

void Generation::OnDrained() {
  if (ended_) {
    return;
  }
  for (const auto& [key, event] : std::exchange(held_, {})) {
    Write(key.first, event);
  }
  FinishIfComplete();
}

void Generation::FinishIfComplete() {
  if (ended_ || num_open_ > 0 || !held_.empty()) {
    return;
  }
  if (!request_.stream) {
    writer_->Respond({.body = json::Dump(CompletedResponse(request_, prompts_, services_.text))});
  } else {
    if (request_.include_usage) {
      writer_->WriteEvent(stream_.Usage(prompts_));
    }
    writer_->Finish(SseStream::kDone);
  }
  End();
}

void Generation::Fail(const ApiError& error) {
  if (ended_) {
    return;
  }
  CancelAll();
  // Whichever of the two fits: a stream that has begun can only carry the error as an event.
  writer_->Respond(ErrorResponse(error));
  writer_->WriteEvent(SseStream::Error(error));
  writer_->Finish(SseStream::kDone);
  End();
}

void Generation::CancelAll() {
  for (const RequestId id : ids_) {
    services_.engine.Cancel(id);
  }
}

void Generation::End() {
  if (std::exchange(ended_, true)) {
    return;
  }
  held_.clear();
  services_.registry.Remove(this, tenant_);
}

void Generation::Shutdown() {
  executor_->Post([self = shared_from_this()] {
    self->Fail(MakeApiError(503, "The server is shutting down."));
  });
}

}  // namespace nibble
