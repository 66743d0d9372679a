#include "serve/sse_stream.h"

#include <fmt/format.h>

#include <iterator>

#include "json/value.h"

namespace nibble {

SseStream::SseStream(const ApiRequest& request, const ModelText& text)
    : request_(request), text_(text) {
  prefix_ = "data: {\"id\":";
  json::AppendQuoted(prefix_, request.id);
  prefix_ += request.kind == ApiRequest::Kind::kChat ? ",\"object\":\"chat.completion.chunk\""
                                                     : ",\"object\":\"text_completion\"";
  prefix_ += fmt::format(",\"created\":{},\"model\":", request.created);
  json::AppendQuoted(prefix_, request.model);
  prefix_ += ",\"choices\":[";
}

std::string SseStream::Chunk(const std::vector<PromptState>& prompts,
                             std::string_view choice) const {
  std::string out = prefix_;
  out += choice;
  out += ']';
  if (request_.continuous_usage) {
    out += ",\"usage\":";
    out += json::Dump(UsageJson(request_, prompts));
  }
  out += "}\n\n";
  return out;
}

std::vector<std::string> SseStream::OnEvent(std::vector<PromptState>& prompts, std::size_t prompt,
                                            const OutputEvent& event) const {
  std::vector<std::string> events;
  // Nothing to tell: a step of prefill.
  if (event.text.empty() && event.tokens.empty() && !event.finish) {
    return events;
  }
  const bool chat = request_.kind == ApiRequest::Kind::kChat;
  ChoiceState& state = prompts[prompt].choices[static_cast<std::size_t>(event.choice)];
  const std::size_t index =
      prompt * static_cast<std::size_t>(request_.n) + static_cast<std::size_t>(event.choice);
  const bool first = !std::exchange(state.opened, true);
  if (chat && first) {
    events.push_back(Chunk(prompts, fmt::format("{{\"index\":{},\"delta\":{{\"role\":\"assistant\","
                                                "\"content\":\"\"}},\"logprobs\":null,"
                                                "\"finish_reason\":null}}",
                                                index)));
  }
  const bool with_echo = !chat && first && request_.echo;

  std::string choice = fmt::format("{{\"index\":{},", index);
  choice += chat ? "\"delta\":{\"content\":" : "\"text\":";
  json::AppendQuoted(choice, with_echo ? request_.echo_texts[prompt] + event.text : event.text);
  choice += chat ? "},\"logprobs\":" : ",\"logprobs\":";
  if (!request_.logprobs) {
    choice += "null";
  } else if (chat) {
    choice += json::Dump(ChatLogprobs(event.logprobs, request_, text_));
  } else {
    const std::vector<TokenId>& prompt_tokens = request_.requests[prompt].prompt;
    choice += json::Dump(CompletionLogprobs(
        prompts[prompt].prompt_logprobs,
        with_echo ? std::span<const TokenId>(prompt_tokens) : std::span<const TokenId>(),
        event.logprobs, request_, text_, state.text_offset));
  }
  if (event.finish) {
    choice += fmt::format(",\"finish_reason\":\"{}\",\"stop_reason\":", FinishName(*event.finish));
    choice += json::Dump(StopReasonJson(event.stop_reason));
  } else {
    choice += ",\"finish_reason\":null";
  }
  if (request_.return_token_ids) {
    choice += ",\"token_ids\":[";
    for (std::size_t i = 0; i < event.tokens.size(); ++i) {
      fmt::format_to(std::back_inserter(choice), "{}{}", i > 0 ? "," : "", Raw(event.tokens[i]));
    }
    choice += ']';
  }
  choice += '}';
  events.push_back(Chunk(prompts, choice));
  return events;
}

std::string SseStream::Usage(const std::vector<PromptState>& prompts) const {
  return prefix_ + "],\"usage\":" + json::Dump(UsageJson(request_, prompts)) + "}\n\n";
}

std::string SseStream::Error(const ApiError& error) { return "data: " + ErrorBody(error) + "\n\n"; }

}  // namespace nibble
