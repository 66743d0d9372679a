#include "serve/openai_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>

#include "base/random.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr int kTools = 128;
constexpr std::size_t kTokenPromptValues = 1'000'000;  // lm-eval sends batches of token ids

// Known fields that need nothing from us: hints, bookkeeping, other vendors' knobs without effect
// on the text.
constexpr std::array kIgnoredFields = std::to_array<std::string_view>(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
     "prompt_cache_retention", "verbosity", "prediction", "web_search_options",
     "parallel_tool_calls", "include_reasoning", "length_penalty", "session_id",
     "spaces_between_special_tokens", "reasoning_format"});

// Known fields whose effect is not built: refused unless they are off.
constexpr std::array kUnbuiltFields = std::to_array<std::string_view>({"structured_outputs",
                                                                       "guided_json",
                                                                       "guided_regex",
                                                                       "guided_choice",
                                                                       "guided_grammar",
                                                                       "guided_decoding_backend",
                                                                       "guided_whitespace_pattern",
                                                                       "use_beam_search",
                                                                       "prompt_embeds",
                                                                       "logprob_token_ids",
                                                                       "allowed_token_ids",
                                                                       "bad_words",
                                                                       "thinking_token_budget",
                                                                       "repetition_detection",
                                                                       "vllm_xargs",
                                                                       "kv_transfer_params",
                                                                       "logits_processors",
                                                                       "mm_processor_kwargs",
                                                                       "media_io_kwargs",
                                                                       "audio",
                                                                       "functions",
                                                                       "priority",
                                                                       "return_prompt_text",
                                                                       "suffix"});

bool IsOff(const json::Value& value) {
  if (const auto flag = value.AsBool()) {
    return !*flag;
  }
  if (const auto number = value.AsDouble()) {
    return *number == 0.0;
  }
  if (const auto* text = value.AsString()) {
    return text->empty();
  }
  if (const auto* array = value.AsArray()) {
    return array->empty();
  }
  if (const auto* object = value.AsObject()) {
    return object->empty();
  }
  return true;
}

// Typed access to one object's fields. null counts as absent. The first error sticks, so a parser
// reads on and looks once at the end.
class Fields {
 public:
  Fields(const json::Object& object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  const json::Value* Get(std::string_view name) {
    seen_.push_back(name);
    const json::Value* value = object_.Find(name);
    return value == nullptr || value->IsNull() ? nullptr : value;
  }

  std::optional<std::int64_t> Int(std::string_view name, std::int64_t min, std::int64_t max) {
    const json::Value* value = Get(name);
    if (value == nullptr) {
      return std::nullopt;
    }
    const auto number = value->IsNumber() ? value->AsInt() : std::nullopt;
    if (!number) {
      if (value->IsNumber()) {
        Fail(name, fmt::format("{} must be an integer from {} to {}.", name, min, max));
      } else {
        WrongType(name, "an integer", *value);
      }
      return std::nullopt;
    }
    if (*number < min || *number > max) {
      Fail(name, fmt::format("{} must be from {} to {}, got {}.", name, min, max, *number));
      return std::nullopt;
    }
    return number;
  }

  std::optional<float> Number(std::string_view name, double min, double max) {
    const json::Value* value = Get(name);
    if (value == nullptr) {
      return std::nullopt;
    }
    const auto number = value->AsDouble();
    if (!number) {
      WrongType(name, "a number", *value);
      return std::nullopt;
    }
    if (!(*number >= min && *number <= max)) {
      Fail(name, fmt::format("{} must be from {} to {}, got {}.", name, min, max, *number));
      return std::nullopt;
    }
    return static_cast<float>(*number);
  }

  bool Bool(std::string_view name, bool otherwise) {
    const json::Value* value = Get(name);
    if (value == nullptr) {
      return otherwise;
    }
    const auto flag = value->AsBool();
    if (!flag) {
      WrongType(name, "true or false", *value);
    }
    return flag.value_or(otherwise);
  }

  const std::string* String(std::string_view name) {
    const json::Value* value = Get(name);
    if (value != nullptr && !value->IsString()) {
      WrongType(name, "a string", *value);
      return nullptr;
    }
    return value == nullptr ? nullptr : value->AsString();
  }

  const json::Object* Object(std::string_view name) {
    const json::Value* value = Get(name);
    if (value != nullptr && !value->IsObject()) {
      WrongType(name, "an object", *value);
      return nullptr;
    }
    return value == nullptr ? nullptr : value->AsObject();
  }

  const json::Array* Array(std::string_view name) {
    const json::Value* value = Get(name);
    if (value != nullptr && !value->IsArray()) {
      WrongType(name, "an array", *value);
      return nullptr;
    }
    return value == nullptr ? nullptr : value->AsArray();
  }

  void WrongType(std::string_view name, std::string_view wanted, const json::Value& value) {
    Fail(name, fmt::format("{} must be {}, not {}.", name, wanted, value.TypeName()));
  }

  void Fail(std::string_view name, std::string message) {
    Fail(MakeApiError(400, std::move(message), prefix_ + std::string(name)));
  }
  void Fail(ApiError error) {
    if (!error_) {
      error_ = std::move(error);
    }
  }
  void CheckUnknown() {
    for (const auto& [name, value] : object_) {
      if (std::find(seen_.begin(), seen_.end(), name) == seen_.end()) {
        Fail(MakeApiError(400, "Unknown field: " + Quote(name) + ".", Quote(name)));
        return;
      }
    }
  }

  bool failed() const { return error_.has_value(); }
  tl::unexpected<ApiError> error() const { return tl::unexpected<ApiError>(*error_); }

 private:
  const json::Object& object_;
  std::string prefix_;
  std::vector<std::string_view> seen_;  // names are literals
  std::optional<ApiError> error_;
};

ApiResult<json::Value> ParseBody(std::string_view body, std::size_t max_values) {
  const json::ParseLimits json_limits{.max_depth = limits::kJsonDepth,
                                      .max_bytes = limits::kBodyBytes,
                                      .max_values = max_values,
                                      .max_string_bytes = limits::kJsonStringBytes};
  auto value = json::Parse(body, json_limits);
  if (!value) {
    return tl::unexpected<ApiError>(
        MakeApiError(400, "The body is not acceptable JSON: " + value.error().message));
  }
  if (!value->IsObject()) {
    return tl::unexpected<ApiError>(MakeApiError(400, "The body must be a JSON object."));
  }
  return std::move(*value);
}

std::optional<std::int64_t> ParseTokenKey(std::string_view text) {
  if (text.empty() || text.size() > 9) {
    return std::nullopt;
  }
  std::int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') {
      return std::nullopt;
    }
    value = value * 10 + (c - '0');
  }
  return value;
}

// The request's model, as it will be named in the answer.
void ReadModel(Fields& fields, const ApiContext& context, std::string& model) {
  const std::string* name = fields.String("model");
  model = name == nullptr || name->empty() ? context.model_names.front() : *name;
  if (std::find(context.model_names.begin(), context.model_names.end(), model) ==
      context.model_names.end()) {
    fields.Fail(UnknownModel(model));
  }
}

void ReadStops(Fields& fields, SamplingParams& sampling) {
  const json::Value* stop = fields.Get("stop");
  if (stop != nullptr) {
    json::Array list;
    if (stop->IsString()) {
      list.push_back(*stop);
    } else if (const auto* array = stop->AsArray()) {
      list = *array;
    } else {
      fields.WrongType("stop", "a string or an array of strings", *stop);
    }
    if (list.size() > static_cast<std::size_t>(limits::kStopStrings)) {
      fields.Fail("stop",
                  fmt::format("At most {} stop strings are allowed.", limits::kStopStrings));
    }
    for (const json::Value& entry : list) {
      const std::string* text = entry.AsString();
      if (text == nullptr || text->empty() || text->size() > limits::kStopStringBytes) {
        fields.Fail("stop", fmt::format("Each stop must be a string of 1 to {} bytes.",
                                        limits::kStopStringBytes));
        return;
      }
      sampling.stop.push_back(*text);
    }
  }
  sampling.include_stop_str_in_output = fields.Bool("include_stop_str_in_output", false);
}

std::optional<TokenId> ReadToken(const json::Value& value, std::int64_t vocab_size) {
  const auto id = value.IsNumber() ? value.AsInt() : std::nullopt;
  if (!id || *id < 0 || *id >= vocab_size) {
    return std::nullopt;
  }
  return static_cast<TokenId>(*id);
}

void ReadTokenLists(Fields& fields, const ApiContext& context, SamplingParams& sampling) {
  const std::int64_t vocab_size = context.engine.vocab_size;
  if (const auto* ids = fields.Array("stop_token_ids")) {
    if (ids->size() > static_cast<std::size_t>(limits::kLogitBiasEntries)) {
      fields.Fail("stop_token_ids", "Too many stop token ids.");
      return;
    }
    for (const json::Value& value : *ids) {
      const auto id = ReadToken(value, vocab_size);
      if (!id) {
        fields.Fail("stop_token_ids", "Each stop token id must be an id of the vocabulary.");
        return;
      }
      sampling.stop_token_ids.push_back(*id);
    }
  }
  if (const auto* bias = fields.Object("logit_bias")) {
    if (bias->size() > static_cast<std::size_t>(limits::kLogitBiasEntries)) {
      fields.Fail("logit_bias", fmt::format("At most {} logit_bias entries are allowed.",
                                            limits::kLogitBiasEntries));
      return;
    }
    for (const auto& [key, value] : *bias) {
      const auto id = ParseTokenKey(key);
      const auto number = value.AsDouble();
      if (!id || *id >= vocab_size || !number || !(*number >= -100.0 && *number <= 100.0)) {
        fields.Fail("logit_bias",
                    "logit_bias maps token ids of the vocabulary to numbers from -100 to 100.");
        return;
      }
      sampling.logit_bias.emplace_back(static_cast<TokenId>(*id), static_cast<float>(*number));
    }
  }
}

// Everything chat and completions share.
void ReadSampling(Fields& fields, const ApiContext& context, ApiRequest& request,
                  SamplingParams& sampling) {
  const SamplingDefaults& defaults = context.defaults;
  const auto smallest = static_cast<double>(std::numeric_limits<float>::min());
  const auto number = [&](std::string_view name, double min, double max,
                          const std::optional<float>& model, float neutral) {
    return fields.Number(name, min, max).value_or(model.value_or(neutral));
  };
  sampling.temperature = number("temperature", 0.0, 2.0, defaults.temperature, 1.0F);
  sampling.top_p = number("top_p", smallest, 1.0, defaults.top_p, 1.0F);
  sampling.min_p = number("min_p", 0.0, 1.0, defaults.min_p, 0.0F);
  sampling.presence_penalty = number("presence_penalty", -2.0, 2.0, std::nullopt, 0.0F);
  sampling.frequency_penalty = number("frequency_penalty", -2.0, 2.0, std::nullopt, 0.0F);
  sampling.repetition_penalty =
      number("repetition_penalty", smallest, 100.0, defaults.repetition_penalty, 1.0F);
  constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
  sampling.top_k = static_cast<std::int32_t>(std::max<std::int64_t>(
      0, fields.Int("top_k", -1, kMaxInt).value_or(defaults.top_k.value_or(0))));
  if (const json::Value* seed = fields.Get("seed")) {
    const auto as_int = seed->IsNumber() ? seed->AsInt() : std::nullopt;
    const auto as_uint = seed->IsNumber() ? seed->AsUint() : std::nullopt;
    if (!as_int && !as_uint) {
      fields.Fail("seed", "seed must be a 64-bit integer.");
    }
    sampling.seed = as_int ? static_cast<std::uint64_t>(*as_int) : as_uint.value_or(0);
  } else {
    sampling.seed = Entropy();
  }
  sampling.min_tokens = static_cast<std::int32_t>(fields.Int("min_tokens", 0, kMaxInt).value_or(0));
  sampling.ignore_eos = fields.Bool("ignore_eos", false);
  sampling.skip_special_tokens = fields.Bool("skip_special_tokens", true);
  ReadStops(fields, sampling);
  ReadTokenLists(fields, context, sampling);

  request.n = static_cast<std::int32_t>(fields.Int("n", 1, limits::kChoices).value_or(1));
  const auto best_of = fields.Int("best_of", 1, limits::kChoices);
  if (best_of && *best_of != request.n) {
    fields.Fail("best_of", "best_of other than n is not supported yet.");
  }
  request.stream = fields.Bool("stream", false);
  if (const auto* options = fields.Object("stream_options")) {
    if (!request.stream) {
      fields.Fail("stream_options", "stream_options is only allowed when stream is true.");
    }
    Fields nested(*options, "stream_options.");
    request.include_usage = nested.Bool("include_usage", false);
    request.continuous_usage =
        nested.Bool("continuous_usage_stats", false) && request.include_usage;
    nested.Bool("include_obfuscation", false);
    if (nested.failed()) {
      fields.Fail(nested.error().value());
    }
  }
  if (const auto interval = fields.Int("stream_interval", 1, kMaxInt); interval.value_or(1) != 1) {
    fields.Fail("stream_interval", "stream_interval other than 1 is not supported yet.");
  }
  if (const json::Value* wanted = fields.Get("prompt_logprobs")) {
    const auto count = fields.Int("prompt_logprobs", 0, limits::kTopLogprobs);
    if (request.stream) {
      fields.Fail("prompt_logprobs", "prompt_logprobs is not available when stream is true.");
    }
    request.prompt_logprobs = !wanted->IsNull();
    sampling.num_prompt_logprobs = static_cast<std::int32_t>(count.value_or(0));
  }
  request.tokens_as_ids = fields.Bool("return_tokens_as_token_ids", false);
  request.return_token_ids = fields.Bool("return_token_ids", false);
  if (const auto* format = fields.Object("response_format")) {
    const json::Value* type = format->Find("type");
    const std::string* name = type == nullptr ? nullptr : type->AsString();
    if (name == nullptr) {
      fields.Fail("response_format", "response_format.type must be a string.");
    } else if (*name != "text") {
      fields.Fail("response_format",
                  "response_format other than {\"type\": \"text\"} is not supported yet.");
    }
  }
  if (const auto* modalities = fields.Array("modalities")) {
    for (const json::Value& value : *modalities) {
      if (value.AsString() == nullptr || *value.AsString() != "text") {
        fields.Fail("modalities", "Only the modality \"text\" is supported.");
      }
    }
  }
  for (const std::string_view name : kIgnoredFields) {
    fields.Get(name);
  }
  for (const std::string_view name : kUnbuiltFields) {
    const json::Value* value = fields.Get(name);
    if (value != nullptr && !IsOff(*value)) {
      fields.Fail(name, fmt::format("{} is not supported yet.", name));
    }
  }
  if (const std::string* id = fields.String("request_id")) {
    const auto fit = [](char c) { return c > 0x20 && c < 0x7F && c != '"' && c != '\\'; };
    if (id->empty() || id->size() > 128 || !std::all_of(id->begin(), id->end(), fit)) {
      fields.Fail("request_id", "request_id must be 1 to 128 visible ASCII characters.");
    } else {
      request.id = *id;
    }
  }
}

struct Truncation {
  std::optional<std::int64_t> keep;  // -1: as many as fit
  bool keep_last = true;
};

Truncation ReadTruncation(Fields& fields) {
  Truncation truncation;
  truncation.keep = fields.Int("truncate_prompt_tokens", -1, 1 << 30);
  if (truncation.keep == 0) {
    fields.Fail("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1.");
  }
  if (const std::string* side = fields.String("truncation_side")) {
    if (*side != "left" && *side != "right") {
      fields.Fail("truncation_side", "truncation_side must be \"left\" or \"right\".");
    }
    truncation.keep_last = *side != "right";
  }
  return truncation;
}

ApiError TooLong(std::size_t num_tokens, const ApiContext& context, std::string_view param) {
  return MakeApiError(400,
                      fmt::format("Input length ({}) exceeds model's maximum context length ({}).",
                                  num_tokens, context.engine.max_model_len),
                      std::string(param));
}

// Fits one tokenized prompt and its max_tokens into the context and adds it to the request.
void AddPrompt(Fields& fields, const ApiContext& context, const Truncation& truncation,
               std::optional<std::int64_t> max_tokens, const SamplingParams& sampling,
               std::string_view param, std::vector<TokenId> prompt, ApiRequest& request) {
  const std::int64_t context_tokens = context.engine.max_model_len;
  const std::int64_t reserve = std::min<std::int64_t>(max_tokens.value_or(1), context_tokens - 1);
  if (truncation.keep) {
    const auto keep = static_cast<std::size_t>(*truncation.keep < 0 ? context_tokens - reserve
                                                                    : *truncation.keep);
    if (prompt.size() > keep) {
      const auto surplus = static_cast<std::ptrdiff_t>(prompt.size() - keep);
      if (truncation.keep_last) {
        prompt.erase(prompt.begin(), prompt.begin() + surplus);
      } else {
        prompt.erase(prompt.end() - surplus, prompt.end());
      }
    }
  }
  const auto length = static_cast<std::int64_t>(prompt.size());
  if (length == 0) {
    return fields.Fail(param, "The prompt must have at least one token.");
  }
  const std::int64_t room = context_tokens - length;
  if (room < (max_tokens == 0 ? 0 : 1)) {
    return fields.Fail(TooLong(prompt.size(), context, param));
  }
  if (max_tokens && *max_tokens > room) {
    return fields.Fail(
        "max_tokens",
        fmt::format(
            "'max_tokens' or 'max_completion_tokens' is too large: {}. This model's maximum "
            "context length is {} tokens and your request has {} input tokens.",
            *max_tokens, context_tokens, length));
  }
  GenerationRequest generation;
  generation.prompt = std::move(prompt);
  generation.sampling = sampling;
  generation.n = request.n;
  // Without a wish the answer may be as long as the context, the model's own limit and the KV pool
  // allow; the last token of a sequence needs no slot.
  const std::int64_t pool =
      std::int64_t{context.engine.num_blocks} * context.engine.block_size_tokens;
  const std::int64_t most = std::min<std::int64_t>(
      room, context.defaults.max_tokens.value_or(std::numeric_limits<std::int32_t>::max()));
  const std::int64_t default_tokens =
      pool > 0 ? std::clamp<std::int64_t>(pool - length + 1, 1, most) : most;
  generation.sampling.max_tokens = static_cast<std::int32_t>(max_tokens.value_or(default_tokens));
  if (generation.sampling.min_tokens > generation.sampling.max_tokens) {
    return fields.Fail("min_tokens", "min_tokens must not be larger than max_tokens.");
  }
  request.requests.push_back(std::move(generation));
}

// ---- Messages -------------------------------------------------------------------------------

bool ReadParts(Fields& fields, const json::Array& parts, const std::string& where,
               std::string& text) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string here = fmt::format("{}.content.{}", where, i);
    const json::Value* type = parts[i].Find("type");
    const std::string* kind = type == nullptr ? nullptr : type->AsString();
    if (kind == nullptr) {
      fields.Fail(here + ".type", "A content part must be an object with a type.");
      return false;
    }
    if (*kind != "text" && *kind != "refusal") {
      fields.Fail(here + ".type", "Content parts of type " + Quote(*kind) +
                                      " are not supported by this model: only text is.");
      return false;
    }
    const json::Value* value = parts[i].Find(*kind);
    const std::string* content = value == nullptr ? nullptr : value->AsString();
    if (content == nullptr) {
      fields.Fail(here + "." + *kind, *kind + " must be a string.");
      return false;
    }
    text += (i > 0 ? "\n" : "") + *content;
  }
  return true;
}

// On the wire a call's arguments are a JSON string; templates want the object.
bool ReadToolCalls(Fields& fields, const json::Array& calls, const std::string& where,
                   json::Array& out) {
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const std::string here = fmt::format("{}.tool_calls.{}.function", where, i);
    const json::Value* function = calls[i].Find("function");
    const json::Value* name = function == nullptr ? nullptr : function->Find("name");
    if (name == nullptr || !name->IsString()) {
      fields.Fail(here + ".name", "A tool call must have a function with a name.");
      return false;
    }
    json::Value parsed = json::Object();
    if (const json::Value* arguments = function->Find("arguments")) {
      if (const std::string* text = arguments->AsString(); text != nullptr && !text->empty()) {
        auto value = json::Parse(*text, {.max_depth = limits::kJsonDepth,
                                         .max_bytes = limits::kJsonStringBytes,
                                         .max_values = limits::kJsonMembers});
        if (!value) {
          fields.Fail(here + ".arguments", "A tool call's arguments must be JSON.");
          return false;
        }
        parsed = std::move(*value);
      } else if (arguments->IsObject()) {
        parsed = *arguments;
      } else if (text == nullptr && !arguments->IsNull()) {
        fields.Fail(here + ".arguments", "A tool call's arguments must be a string.");
        return false;
      }
    }
    json::Object call = *calls[i].AsObject();
    json::Object copy = *function->AsObject();
    copy.Set("arguments", std::move(parsed));
    call.Set("function", std::move(copy));
    out.emplace_back(std::move(call));
  }
  return true;
}

bool ReadMessage(Fields& fields, const json::Value& value, const std::string& where,
                 json::Array& out) {
  static constexpr std::array kRoles = std::to_array<std::string_view>(
      {"system", "developer", "user", "assistant", "tool", "function"});
  const json::Object* message = value.AsObject();
  if (message == nullptr) {
    fields.Fail(where, "A message must be an object.");
    return false;
  }
  const json::Value* role_value = message->Find("role");
  const std::string* role = role_value == nullptr ? nullptr : role_value->AsString();
  if (role == nullptr || std::find(kRoles.begin(), kRoles.end(), *role) == kRoles.end()) {
    fields.Fail(where + ".role",
                "role must be one of system, developer, user, assistant, tool and function.");
    return false;
  }
  json::Object result;
  result.Set("role", *role);

  const json::Value* content = message->Find("content");
  std::string text;
  if (content == nullptr || content->IsNull()) {
    if (*role != "assistant") {
      fields.Fail(where + ".content", "content must be a string or an array of parts.");
      return false;
    }
  } else if (const std::string* plain = content->AsString()) {
    text = *plain;
  } else if (const json::Array* parts = content->AsArray()) {
    if (!ReadParts(fields, *parts, where, text)) {
      return false;
    }
  } else {
    fields.Fail(where + ".content", "content must be a string or an array of parts.");
    return false;
  }
  result.Set("content", std::move(text));

  for (const std::string_view name : {"name", "tool_call_id"}) {
    const json::Value* extra = message->Find(name);
    if (extra != nullptr && !extra->IsNull()) {
      if (!extra->IsString()) {
        fields.Fail(fmt::format("{}.{}", where, name), fmt::format("{} must be a string.", name));
        return false;
      }
      result.Set(name, *extra);
    }
  }
  for (const std::string_view name : {"reasoning", "reasoning_content"}) {
    const json::Value* reasoning = message->Find(name);
    if (reasoning != nullptr && reasoning->IsString()) {
      result.Set("reasoning", *reasoning);
      result.Set("reasoning_content", *reasoning);
    }
  }
  const json::Value* calls = message->Find("tool_calls");
  if (calls != nullptr && !calls->IsNull()) {
    if (!calls->IsArray()) {
      fields.Fail(where + ".tool_calls", "tool_calls must be an array.");
      return false;
    }
    json::Array parsed;
    if (!ReadToolCalls(fields, *calls->AsArray(), where, parsed)) {
      return false;
    }
    if (!parsed.empty()) {
      result.Set("tool_calls", std::move(parsed));
    }
  }
  out.emplace_back(std::move(result));
  return true;
}

// messages, tools and how the template is to be called.
void ReadChatPrompt(Fields& fields, ChatPrompt& prompt) {
  const json::Array* messages = fields.Array("messages");
  if (messages == nullptr || messages->empty() ||
      messages->size() > static_cast<std::size_t>(limits::kMessages)) {
    return fields.Fail("messages", fmt::format("messages must be an array of 1 to {} messages.",
                                               limits::kMessages));
  }
  for (std::size_t i = 0; i < messages->size(); ++i) {
    if (!ReadMessage(fields, (*messages)[i], fmt::format("messages.{}", i), prompt.messages)) {
      return;
    }
  }

  const json::Array* tools = fields.Array("tools");
  const json::Value* choice = fields.Get("tool_choice");
  const std::string* choice_name = choice == nullptr ? nullptr : choice->AsString();
  const bool has_tools = tools != nullptr && !tools->empty();
  if (has_tools && (choice_name == nullptr || *choice_name != "none")) {
    fields.Fail("tools", "tools are not supported yet, except with tool_choice \"none\".");
  } else if (has_tools) {
    if (tools->size() > static_cast<std::size_t>(kTools)) {
      fields.Fail("tools", fmt::format("At most {} tools are allowed.", kTools));
    }
    prompt.tools = *tools;
  } else if (choice != nullptr &&
             (choice_name == nullptr || (*choice_name != "none" && *choice_name != "auto"))) {
    fields.Fail("tool_choice", "tool_choice is not supported yet, except \"none\" and \"auto\".");
  }
  const json::Value* function_call = fields.Get("function_call");
  if (function_call != nullptr &&
      (!function_call->IsString() ||
       (*function_call->AsString() != "none" && *function_call->AsString() != "auto"))) {
    fields.Fail("function_call", "function_call is not supported yet.");
  }

  prompt.add_generation_prompt = fields.Bool("add_generation_prompt", true);
  if (fields.Bool("continue_final_message", false)) {
    fields.Fail("continue_final_message", "continue_final_message is not supported yet.");
  }
  if (fields.Get("chat_template") != nullptr) {
    fields.Fail("chat_template", "Templates from requests are not accepted.");
  }
  if (const json::Array* documents = fields.Array("documents")) {
    prompt.extra.Set("documents", *documents);
  }
  if (const std::string* effort = fields.String("reasoning_effort")) {
    static constexpr std::array kEfforts = std::to_array<std::string_view>(
        {"none", "minimal", "low", "medium", "high", "xhigh", "max"});
    if (std::find(kEfforts.begin(), kEfforts.end(), *effort) == kEfforts.end()) {
      fields.Fail("reasoning_effort",
                  "reasoning_effort is none, minimal, low, medium, high, "
                  "xhigh or max.");
    }
    prompt.extra.Set("reasoning_effort", *effort);
    prompt.extra.Set("enable_thinking", *effort != "none");
  }
  if (const json::Object* extra = fields.Object("chat_template_kwargs")) {
    for (const auto& [name, value] : *extra) {
      if (name == "messages" || name == "tools" || name == "add_generation_prompt") {
        fields.Fail("chat_template_kwargs", "chat_template_kwargs may not replace " + name + ".");
      }
      prompt.extra.Set(name, value);
    }
  }
  if (fields.Bool("echo", false)) {
    fields.Fail("echo", "echo is not supported yet for chat completions.");
  }
}

// ---- Completion prompts ---------------------------------------------------------------------

struct RawPrompt {
  const std::string* text = nullptr;
  const json::Array* tokens = nullptr;
};

// The four shapes: a string, strings, token ids, arrays of token ids.
std::vector<RawPrompt> ReadPrompts(Fields& fields) {
  const json::Value* prompt = fields.Get("prompt");
  std::vector<RawPrompt> prompts;
  const auto wrong = [&] {
    fields.Fail("prompt",
                "prompt must be a string, an array of strings, an array of token ids or an array "
                "of arrays of token ids.");
    return std::vector<RawPrompt>();
  };
  if (prompt == nullptr) {
    return wrong();
  }
  if (const std::string* text = prompt->AsString()) {
    prompts.push_back({.text = text});
    return prompts;
  }
  const json::Array* array = prompt->AsArray();
  if (array == nullptr || array->empty()) {
    return wrong();
  }
  if (array->front().IsNumber()) {
    prompts.push_back({.tokens = array});
    return prompts;
  }
  if (array->size() > static_cast<std::size_t>(limits::kPromptsPerRequest)) {
    fields.Fail("prompt", fmt::format("At most {} prompts are allowed in one request.",
                                      limits::kPromptsPerRequest));
    return {};
  }
  const bool texts = array->front().IsString();
  for (const json::Value& entry : *array) {
    if (texts ? !entry.IsString() : !entry.IsArray()) {
      return wrong();
    }
    prompts.push_back({.text = entry.AsString(), .tokens = entry.AsArray()});
  }
  return prompts;
}

std::optional<std::vector<TokenId>> ReadTokens(const json::Array& values, std::int64_t vocab_size) {
  std::vector<TokenId> tokens;
  tokens.reserve(values.size());
  for (const json::Value& value : values) {
    const auto id = ReadToken(value, vocab_size);
    if (!id) {
      return std::nullopt;
    }
    tokens.push_back(*id);
  }
  return tokens;
}

// A text so long that it cannot fit, whatever its tokens: known before tokenizing it.
bool HopelesslyLong(std::string_view text, const ApiContext& context) {
  return text.size() / limits::kTokenBytes > static_cast<std::size_t>(context.engine.max_model_len);
}

// ---- Answers --------------------------------------------------------------------------------

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  if (IsUtf8(bytes)) {
    return std::string(bytes);
  }
  std::string out;
  while (!bytes.empty()) {
    std::size_t length = std::min<std::size_t>(bytes.size(), 4);
    while (length > 0 && !IsUtf8(bytes.substr(0, length))) {
      --length;
    }
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      length = 1;
    } else {
      out += bytes.substr(0, length);
    }
    bytes.remove_prefix(length);
  }
  return out;
}

std::size_t CountCharacters(std::string_view utf8) {
  return static_cast<std::size_t>(std::count_if(utf8.begin(), utf8.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  }));
}

std::string TokenName(TokenId id, const ApiRequest& request, const ModelText& text) {
  return request.tokens_as_ids ? fmt::format("token_id:{}", Raw(id))
                               : ReplaceInvalidUtf8(text.TokenBytes(id));
}

// JSON has no infinities: what is impossible is -9999, as clients know it.
double JsonLogprob(float logprob) {
  return std::isnan(logprob) ? -9999.0 : static_cast<double>(std::max(logprob, -9999.0F));
}

json::Object ChatLogprob(TokenId token, float logprob, const ApiRequest& request,
                         const ModelText& text) {
  json::Array bytes;
  for (const char c : text.TokenBytes(token)) {
    bytes.emplace_back(static_cast<int>(static_cast<unsigned char>(c)));
  }
  json::Object entry;
  entry.Set("token", TokenName(token, request, text));
  entry.Set("logprob", JsonLogprob(logprob));
  entry.Set("bytes", std::move(bytes));
  return entry;
}

json::Value PromptLogprobsJson(const PromptState& prompt, const ModelText& text) {
  json::Array out;
  for (std::size_t i = 0; i < prompt.prompt_logprobs.size(); ++i) {
    if (i == 0) {
      out.emplace_back(nullptr);
      continue;
    }
    const TokenLogprob& scored = prompt.prompt_logprobs[i];
    json::Object entry;
    const auto add = [&](TokenId id, float logprob, std::int64_t rank) {
      json::Object value;
      value.Set("logprob", JsonLogprob(logprob));
      value.Set("rank", rank);
      value.Set("decoded_token", ReplaceInvalidUtf8(text.TokenBytes(id)));
      entry.Set(fmt::format("{}", Raw(id)), std::move(value));
    };
    add(scored.token, scored.logprob, scored.rank);
    for (std::size_t k = 0; k < scored.top.size(); ++k) {
      if (scored.top[k].first != scored.token) {
        add(scored.top[k].first, scored.top[k].second, static_cast<std::int64_t>(k) + 1);
      }
    }
    out.emplace_back(std::move(entry));
  }
  return out;
}

json::Value TokensJson(std::span<const TokenId> tokens) {
  json::Array out;
  for (const TokenId id : tokens) {
    out.emplace_back(std::int64_t{Raw(id)});
  }
  return out;
}

}  // namespace

ApiError UnknownModel(std::string_view name) {
  return MakeApiError(404, "The model `" + Quote(name) + "` does not exist.", "model");
}

ApiResult<ApiRequest> ParseChatCompletion(std::string_view body, const ApiContext& context) {
  const auto parsed = ParseBody(body, limits::kJsonMembers);
  if (!parsed) {
    return tl::unexpected<ApiError>(parsed.error());
  }
  Fields fields(*parsed->AsObject(), "");
  ApiRequest request{.kind = ApiRequest::Kind::kChat};
  ReadModel(fields, context, request.model);
  SamplingParams sampling;
  ReadSampling(fields, context, request, sampling);

  request.logprobs = fields.Bool("logprobs", false);
  const auto top = fields.Int("top_logprobs", 0, limits::kTopLogprobs);
  if (top.value_or(0) > 0 && !request.logprobs) {
    fields.Fail("top_logprobs", "top_logprobs needs logprobs to be true.");
  }
  sampling.num_logprobs = request.logprobs ? static_cast<std::int32_t>(top.value_or(0)) : -1;

  constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
  const auto old_max = fields.Int("max_tokens", 1, kMaxInt);
  const auto new_max = fields.Int("max_completion_tokens", 1, kMaxInt);
  const Truncation truncation = ReadTruncation(fields);
  const bool add_special = fields.Bool("add_special_tokens", false);
  const std::string* salt = fields.String("cache_salt");

  ChatPrompt prompt;
  ReadChatPrompt(fields, prompt);
  if (context.strict) {
    fields.CheckUnknown();
  }
  if (fields.failed()) {
    return fields.error();
  }
  auto tokens = context.text->EncodeChat(prompt, add_special);
  if (!tokens) {
    ApiError error = FromError(tokens.error());
    error.param = "messages";
    return tl::unexpected<ApiError>(std::move(error));
  }
  AddPrompt(fields, context, truncation, new_max ? new_max : old_max, sampling, "messages",
            std::move(*tokens), request);
  if (fields.failed()) {
    return fields.error();
  }
  request.requests.front().cache_salt = salt == nullptr ? "" : *salt;
  return request;
}

ApiResult<ApiRequest> ParseCompletion(std::string_view body, const ApiContext& context) {
  const auto parsed = ParseBody(body, kTokenPromptValues);
  if (!parsed) {
    return tl::unexpected<ApiError>(parsed.error());
  }
  Fields fields(*parsed->AsObject(), "");
  ApiRequest request{.kind = ApiRequest::Kind::kCompletion};
  ReadModel(fields, context, request.model);
  SamplingParams sampling;
  ReadSampling(fields, context, request, sampling);

  request.echo = fields.Bool("echo", false);
  const auto logprobs = fields.Int("logprobs", 0, limits::kTopLogprobs);
  request.logprobs = logprobs.has_value();
  sampling.num_logprobs = static_cast<std::int32_t>(logprobs.value_or(-1));
  constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
  const std::int64_t max_tokens = fields.Int("max_tokens", 0, kMaxInt).value_or(16);
  if (max_tokens == 0 && !request.echo) {
    fields.Fail("max_tokens", "max_tokens must be at least 1, unless echo is true.");
  }
  if (request.echo && (request.logprobs || max_tokens == 0)) {
    sampling.num_prompt_logprobs =
        std::max({sampling.num_prompt_logprobs, sampling.num_logprobs, 0});
  }
  const Truncation truncation = ReadTruncation(fields);
  const bool add_special = fields.Bool("add_special_tokens", true);
  const std::string* salt = fields.String("cache_salt");
  const std::vector<RawPrompt> prompts = ReadPrompts(fields);
  if (context.strict) {
    fields.CheckUnknown();
  }
  if (fields.failed()) {
    return fields.error();
  }
  for (const RawPrompt& prompt : prompts) {
    std::vector<TokenId> tokens;
    if (prompt.text != nullptr) {
      if (HopelesslyLong(*prompt.text, context)) {
        return tl::unexpected<ApiError>(
            TooLong(prompt.text->size() / limits::kTokenBytes, context, "prompt"));
      }
      tokens = context.text->Encode(*prompt.text, add_special);
    } else {
      auto ids = ReadTokens(*prompt.tokens, context.engine.vocab_size);
      if (!ids) {
        return BadField("prompt", fmt::format("Token ids must be integers from 0 to {}.",
                                              context.engine.vocab_size - 1));
      }
      tokens = std::move(*ids);
    }
    std::string echo_text;
    if (request.echo) {
      echo_text = prompt.text != nullptr
                      ? *prompt.text
                      : context.text->Decode(tokens, sampling.skip_special_tokens);
    }
    AddPrompt(fields, context, truncation, max_tokens, sampling, "prompt", std::move(tokens),
              request);
    if (fields.failed()) {
      return fields.error();
    }
    request.requests.back().cache_salt = salt == nullptr ? "" : *salt;
    request.echo_texts.push_back(std::move(echo_text));
  }
  return request;
}

ApiResult<json::Value> Tokenize(std::string_view body, const ApiContext& context) {
  const auto parsed = ParseBody(body, limits::kJsonMembers);
  if (!parsed) {
    return tl::unexpected<ApiError>(parsed.error());
  }
  Fields fields(*parsed->AsObject(), "");
  std::string model;
  ReadModel(fields, context, model);
  const bool names = fields.Bool("return_token_strs", false);
  std::vector<TokenId> tokens;
  if (fields.Get("messages") != nullptr) {
    ChatPrompt prompt;
    ReadChatPrompt(fields, prompt);
    const bool add_special = fields.Bool("add_special_tokens", false);
    if (fields.failed()) {
      return fields.error();
    }
    auto encoded = context.text->EncodeChat(prompt, add_special);
    if (!encoded) {
      ApiError error = FromError(encoded.error());
      error.param = "messages";
      return tl::unexpected<ApiError>(std::move(error));
    }
    tokens = std::move(*encoded);
  } else {
    const std::string* prompt = fields.String("prompt");
    const bool add_special = fields.Bool("add_special_tokens", true);
    if (prompt == nullptr) {
      fields.Fail("prompt", "prompt must be a string.");
    }
    if (fields.failed()) {
      return fields.error();
    }
    tokens = context.text->Encode(*prompt, add_special);
  }
  json::Value strings;
  if (names) {
    json::Array list;
    for (const TokenId id : tokens) {
      list.emplace_back(ReplaceInvalidUtf8(context.text->TokenBytes(id)));
    }
    strings = std::move(list);
  }
  json::Object answer;
  answer.Set("count", static_cast<std::int64_t>(tokens.size()));
  answer.Set("max_model_len", context.engine.max_model_len);
  answer.Set("tokens", TokensJson(tokens));
  answer.Set("token_strs", std::move(strings));
  return json::Value(std::move(answer));
}

ApiResult<json::Value> Detokenize(std::string_view body, const ApiContext& context) {
  const auto parsed = ParseBody(body, kTokenPromptValues);
  if (!parsed) {
    return tl::unexpected<ApiError>(parsed.error());
  }
  Fields fields(*parsed->AsObject(), "");
  std::string model;
  ReadModel(fields, context, model);
  const json::Array* tokens = fields.Array("tokens");
  if (tokens == nullptr) {
    fields.Fail("tokens", "tokens must be an array of token ids.");
  }
  if (fields.failed()) {
    return fields.error();
  }
  const auto ids = ReadTokens(*tokens, context.engine.vocab_size);
  if (!ids) {
    return BadField("tokens", fmt::format("Token ids must be integers from 0 to {}.",
                                          context.engine.vocab_size - 1));
  }
  json::Object answer;
  answer.Set("prompt", context.text->Decode(*ids, /*skip_special=*/false));
  return json::Value(std::move(answer));
}

void Apply(const OutputEvent& event, const ApiRequest& request, PromptState& prompt) {
  ChoiceState& choice = prompt.choices[static_cast<std::size_t>(event.choice)];
  if (!event.prompt_logprobs.empty()) {
    prompt.prompt_logprobs = event.prompt_logprobs;
  }
  prompt.num_cached_tokens = std::max(prompt.num_cached_tokens, event.num_cached_tokens);
  choice.num_tokens = event.num_output_tokens;
  choice.finish = event.finish;
  choice.stop_reason = event.stop_reason;
  if (!request.stream) {
    choice.text += event.text;
    choice.logprobs.insert(choice.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (request.return_token_ids) {
      choice.tokens.insert(choice.tokens.end(), event.tokens.begin(), event.tokens.end());
    }
  }
}

const char* FinishName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kRejected:
    case FinishReason::kError:
      return "error";
    case FinishReason::kCancelled:
    case FinishReason::kDeadline:
    case FinishReason::kQueueTimeout:
    case FinishReason::kShutdown:
      break;
  }
  return "abort";
}

json::Value StopReasonJson(const decltype(OutputEvent::stop_reason)& reason) {
  if (const auto* token = std::get_if<TokenId>(&reason)) {
    return std::int64_t{Raw(*token)};
  }
  if (const auto* text = std::get_if<std::string>(&reason)) {
    return *text;
  }
  return nullptr;
}

json::Object UsageJson(const ApiRequest& request, const std::vector<PromptState>& prompts) {
  std::int64_t num_prompt = 0;
  std::int64_t num_cached = 0;
  std::int64_t num_output = 0;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    num_prompt += static_cast<std::int64_t>(request.requests[p].prompt.size());
    num_cached += prompts[p].num_cached_tokens;
    for (const ChoiceState& choice : prompts[p].choices) {
      num_output += choice.num_tokens;
    }
  }
  json::Object details;
  details.Set("cached_tokens", num_cached);
  json::Object usage;
  usage.Set("prompt_tokens", num_prompt);
  usage.Set("completion_tokens", num_output);
  usage.Set("total_tokens", num_prompt + num_output);
  usage.Set("prompt_tokens_details", std::move(details));
  return usage;
}

json::Value ChatLogprobs(std::span<const TokenLogprob> logprobs, const ApiRequest& request,
                         const ModelText& text) {
  json::Array content;
  for (const TokenLogprob& scored : logprobs) {
    json::Object entry = ChatLogprob(scored.token, scored.logprob, request, text);
    json::Array top;
    for (const auto& [token, logprob] : scored.top) {
      top.emplace_back(ChatLogprob(token, logprob, request, text));
    }
    entry.Set("top_logprobs", std::move(top));
    content.emplace_back(std::move(entry));
  }
  json::Object out;
  out.Set("content", std::move(content));
  out.Set("refusal", nullptr);
  return out;
}

json::Value CompletionLogprobs(std::span<const TokenLogprob> prompt,
                               std::span<const TokenId> prompt_tokens,
                               std::span<const TokenLogprob> logprobs, const ApiRequest& request,
                               const ModelText& text, std::size_t& text_offset) {
  json::Array tokens;
  json::Array token_logprobs;
  json::Array top_logprobs;
  json::Array offsets;
  const auto add_name = [&](TokenId id) {
    std::string name = TokenName(id, request, text);
    offsets.emplace_back(static_cast<std::int64_t>(text_offset));
    text_offset +=
        CountCharacters(request.tokens_as_ids ? ReplaceInvalidUtf8(text.TokenBytes(id)) : name);
    tokens.emplace_back(std::move(name));
  };
  const auto add_scored = [&](const TokenLogprob& scored) {
    add_name(scored.token);
    token_logprobs.emplace_back(JsonLogprob(scored.logprob));
    // Two tokens may look alike as text: the likelier one keeps the name.
    json::Object top;
    const auto add_top = [&](TokenId id, float logprob) {
      const std::string name = TokenName(id, request, text);
      const double value = JsonLogprob(logprob);
      const json::Value* present = top.Find(name);
      if (present == nullptr || present->AsDouble().value_or(value) < value) {
        top.Set(name, value);
      }
    };
    for (const auto& [token, logprob] : scored.top) {
      add_top(token, logprob);
    }
    add_top(scored.token, scored.logprob);
    top_logprobs.emplace_back(std::move(top));
  };
  for (std::size_t i = 0; i < prompt_tokens.size(); ++i) {
    if (i == 0 || i >= prompt.size()) {  // nothing stands before the first: no probability
      add_name(prompt_tokens[i]);
      token_logprobs.emplace_back(nullptr);
      top_logprobs.emplace_back(nullptr);
    } else {
      add_scored(prompt[i]);
    }
  }
  for (const TokenLogprob& scored : logprobs) {
    add_scored(scored);
  }
  json::Object out;
  out.Set("tokens", std::move(tokens));
  out.Set("token_logprobs", std::move(token_logprobs));
  out.Set("top_logprobs", std::move(top_logprobs));
  out.Set("text_offset", std::move(offsets));
  return out;
}

json::Value CompletedResponse(const ApiRequest& request, const std::vector<PromptState>& prompts,
                              const ModelText& text) {
  const bool chat = request.kind == ApiRequest::Kind::kChat;
  json::Array choices;
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    const std::vector<TokenId>& prompt_tokens = request.requests[p].prompt;
    for (std::size_t i = 0; i < prompts[p].choices.size(); ++i) {
      const ChoiceState& state = prompts[p].choices[i];
      json::Object choice;
      choice.Set("index", static_cast<std::int64_t>(p * static_cast<std::size_t>(request.n) + i));
      json::Value logprobs;
      if (chat) {
        json::Object message;
        message.Set("role", "assistant");
        message.Set("content", state.text);
        message.Set("refusal", nullptr);
        choice.Set("message", std::move(message));
        if (request.logprobs) {
          logprobs = ChatLogprobs(state.logprobs, request, text);
        }
      } else {
        choice.Set("text", request.echo ? request.echo_texts[p] + state.text : state.text);
        if (request.logprobs) {
          std::size_t offset = 0;
          logprobs = CompletionLogprobs(
              prompts[p].prompt_logprobs,
              request.echo ? std::span<const TokenId>(prompt_tokens) : std::span<const TokenId>(),
              state.logprobs, request, text, offset);
        }
      }
      choice.Set("logprobs", std::move(logprobs));
      choice.Set("finish_reason", FinishName(state.finish.value_or(FinishReason::kError)));
      choice.Set("stop_reason", StopReasonJson(state.stop_reason));
      if (request.return_token_ids) {
        choice.Set("token_ids", TokensJson(state.tokens));
        if (!chat) {
          choice.Set("prompt_token_ids", TokensJson(prompt_tokens));
        }
      }
      if (!chat && request.prompt_logprobs) {
        choice.Set("prompt_logprobs", PromptLogprobsJson(prompts[p], text));
      }
      choices.emplace_back(std::move(choice));
    }
  }
  json::Object response;
  response.Set("id", request.id);
  response.Set("object", chat ? "chat.completion" : "text_completion");
  response.Set("created", request.created);
  response.Set("model", request.model);
  response.Set("choices", std::move(choices));
  response.Set("usage", UsageJson(request, prompts));
  response.Set("system_fingerprint", nullptr);
  response.Set("service_tier", nullptr);
  if (chat && request.prompt_logprobs) {
    response.Set("prompt_logprobs", PromptLogprobsJson(prompts.front(), text));
  }
  if (chat && request.return_token_ids) {
    response.Set("prompt_token_ids", TokensJson(request.requests.front().prompt));
  }
  return response;
}

json::Value ModelJson(const std::string& name, const std::string& root, std::int64_t created,
                      const ApiContext& context) {
  json::Object model;
  model.Set("id", name);
  model.Set("object", "model");
  model.Set("created", created);
  model.Set("owned_by", "nibble");
  model.Set("root", root);
  model.Set("parent", nullptr);
  model.Set("max_model_len", context.engine.max_model_len);
  model.Set("permission", json::Array());
  return model;
}

}  // namespace nibble
