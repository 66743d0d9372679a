#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "serve/openai_api.h"

namespace nibble {

/// Server-sent events of one streamed request: "data: JSON\n\n", LF only, no event: or id: lines.
/// Every returned string is one whole event, meant for one send. The rules are those that existing
/// clients need: the role comes once, first, and only when the choice's first output is there (it
/// is a client's time to first token); usage comes in a chunk without choices; [DONE] ends it.
class SseStream {
 public:
  /// Both must outlive the stream.
  SseStream(const ApiRequest& request, const ModelText& text);

  /// The events of one engine event, which Apply() has already taken into prompts[prompt].
  std::vector<std::string> OnEvent(std::vector<PromptState>& prompts, std::size_t prompt,
                                   const OutputEvent& event) const;
  /// The chunk with no choices; only if the client asked for usage.
  std::string Usage(const std::vector<PromptState>& prompts) const;

  static std::string Error(const ApiError& error);
  static constexpr std::string_view kDone = "data: [DONE]\n\n";

 private:
  std::string Chunk(const std::vector<PromptState>& prompts, std::string_view choice) const;

  const ApiRequest& request_;
  const ModelText& text_;
  std::string prefix_;  // up to the choices
};

}  // namespace nibble
