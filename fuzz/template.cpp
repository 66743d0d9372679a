#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "json/value.h"
#include "template/chat.h"

// The template, then optionally a zero byte and its variables as JSON. Limits below the product's
// only so that a run stays short.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace nibble;
  static const json::Value kDefault = *json::Parse(
      R"({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hé, \n"},
          {"role": "assistant", "content": null, "tool_calls": [{"type": "function",
           "function": {"name": "f", "arguments": {"a": [1, 2.5, true]}}}]}],
          "tools": [{"function": {"name": "f"}}], "n": 3, "f": 0.5, "s": "text", "none": null,
          "d": {"k": "v", "z": [3, 1, 2]}, "bos_token": "<s>"})");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = text.find('\0');
  auto chat = ChatTemplate::Parse(text.substr(0, zero));
  if (!chat) {
    return 0;
  }
  json::Value variables = kDefault;
  if (zero != std::string_view::npos) {
    auto given = json::Parse(text.substr(zero + 1));
    if (given && given->IsObject()) {
      variables = std::move(*given);
    }
  }
  jinja::RenderOptions options;
  options.max_operations = 50'000;
  options.max_output_bytes = 1 << 18;
  options.now = "2025-01-15T10:30:00";
  (void)chat->jinja().Render(*variables.AsObject(), options);
  if (const json::Value* const messages = variables.Find("messages")) {
    if (const json::Array* const array = messages->AsArray()) {
      ChatInput input;
      input.messages = *array;
      (void)RenderChat(*chat, input, options);
    }
  }
  return 0;
}
