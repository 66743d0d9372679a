#include "compress/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string_view>

#include "base/random.h"
#include "base/sha256.h"
#include "base/text.h"
#include "eval/perplexity.h"
#include "io/file.h"
#include "template/chat.h"

namespace nibble {
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 30;
constexpr const char* kToday = "2025-01-01T00:00:00";  // renders the same on every day

// "human" and "gpt" as ShareGPT has them.
std::string RoleOf(const std::string& from) {
  if (from == "human") {
    return "user";
  }
  return from == "gpt" ? "assistant" : from;
}

json::Object Message(json::Value role, json::Value content) {
  json::Object message;
  message.Set("role", std::move(role));
  message.Set("content", std::move(content));
  return message;
}

// The rows of a .jsonl as token streams.
class RowReader {
 public:
  RowReader(const Checkpoint& model, const Tokenizer& tokenizer)
      : model_(model), tokenizer_(tokenizer) {}

  // Appends the tokens of a row. Errors without the place.
  Result<void> Append(const json::Value& row, std::vector<TokenId>& tokens) {
    if (!row.IsObject()) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("expected an object, found {}", row.TypeName()));
    }
    if (const json::Value* text = row.Find("text")) {
      const std::string* content = text->AsString();
      if (content == nullptr) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("\"text\" is {}, not a string", text->TypeName()));
      }
      Join(tokenizer_.Encode(*content, {.add_special_tokens = true}), tokens);
      return {};
    }
    NIBBLE_TRY(messages, MessagesOf(row));
    NIBBLE_TRY(text, Render(messages));
    Join(tokenizer_.Encode(text, {.parse_special = true}), tokens);
    return {};
  }

 private:
  static Result<json::Array> MessagesOf(const json::Value& row) {
    const auto wrong = [](const std::string& what) {
      return Fail(ErrorCode::kInvalidArgument, what);
    };
    if (const json::Value* messages = row.Find("messages")) {
      const json::Array* array = messages->AsArray();
      return array != nullptr
                 ? Result<json::Array>(*array)
                 : wrong(fmt::format("\"messages\" is {}, not an array", messages->TypeName()));
    }
    if (const json::Value* turns = row.Find("conversations")) {
      const json::Array* array = turns->AsArray();
      if (array == nullptr) {
        return wrong(fmt::format("\"conversations\" is {}, not an array", turns->TypeName()));
      }
      json::Array messages;
      for (const json::Value& turn : *array) {
        const json::Value* from = turn.Find("from");
        const json::Value* value = turn.Find("value");
        if (from == nullptr || from->AsString() == nullptr || value == nullptr) {
          return wrong("a turn of \"conversations\" needs \"from\" and \"value\"");
        }
        messages.emplace_back(Message(RoleOf(*from->AsString()), *value));
      }
      return messages;
    }
    if (const json::Value* prompt = row.Find("prompt")) {
      json::Array messages;
      messages.emplace_back(Message("user", *prompt));
      for (const char* key : {"completion", "response"}) {
        if (const json::Value* answer = row.Find(key)) {
          messages.emplace_back(Message("assistant", *answer));
          break;
        }
      }
      return messages;
    }
    return wrong("the row has none of \"text\", \"messages\", \"conversations\" and \"prompt\"");
  }

  Result<std::string> Render(const json::Array& messages) {
    if (!template_) {
      if (model_.chat_template()) {
        NIBBLE_TRY(parsed, ChatTemplate::Parse(*model_.chat_template()));
        template_ = std::move(parsed);
      } else {
        template_ = ChatTemplate::Default();
      }
    }
    NIBBLE_TRY(normal, template_->Normalize(messages));
    const bool answered = !normal.empty() && normal.back().Find("role") != nullptr &&
                          *normal.back().Find("role") == json::Value("assistant");
    ChatInput input{.messages = std::move(normal),
                    .add_generation_prompt = !answered,
                    .bos_token = model_.bos_token(),
                    .eos_token = model_.eos_token()};
    jinja::RenderOptions options;
    options.now = kToday;
    return RenderChat(*template_, input, options);
  }

  static void Join(const std::vector<TokenId>& row, std::vector<TokenId>& tokens) {
    tokens.insert(tokens.end(), row.begin(), row.end());
  }

  const Checkpoint& model_;
  const Tokenizer& tokenizer_;
  std::optional<ChatTemplate> template_;
};

// Whether the file holds an object a line.
bool HasRows(const std::filesystem::path& file) {
  std::string ending = file.extension().string();
  std::ranges::transform(ending, ending.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return ending == ".jsonl" || ending == ".ndjson" || ending == ".json";
}

Result<std::vector<TokenId>> TokensOf(const std::filesystem::path& file, std::string_view bytes,
                                      const Checkpoint& model, const Tokenizer& tokenizer,
                                      std::int64_t& num_rows) {
  NIBBLE_TRY(text, Utf8Text(bytes, file));
  if (!HasRows(file)) {
    num_rows = 1;
    return tokenizer.Encode(text);
  }
  if (const std::size_t first = text.find_first_not_of(" \t\r\n");
      first != std::string_view::npos && text[first] == '[') {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: is an array; give one object a line, as jq -c '.[]' makes of it",
                            file.string()));
  }
  RowReader reader(model, tokenizer);
  std::vector<TokenId> tokens;
  std::int64_t number = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    const auto row = json::Parse(line);
    const auto appended =
        row ? reader.Append(*row, tokens) : Result<void>(tl::unexpected<Error>(row.error()));
    if (!appended) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{}, line {}: {}", file.string(), number, appended.error().message));
    }
    ++num_rows;
  }
  return tokens;
}

Result<void> CheckVocabulary(const std::filesystem::path& file, const Checkpoint& model,
                             const std::vector<TokenId>& tokens) {
  const auto beyond = std::ranges::find_if(
      tokens, [&](TokenId token) { return Raw(token) >= model.config().vocab_size; });
  if (beyond != tokens.end()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: the tokenizer gives token {}, the model has {} only: they do not "
                            "belong together",
                            file.string(), Raw(*beyond), model.config().vocab_size));
  }
  return {};
}

// `count` of [0, total), each as likely as the others, ascending.
std::vector<std::int64_t> Choose(std::int64_t total, std::int64_t count, std::uint64_t seed) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(total));
  std::iota(all.begin(), all.end(), 0);
  PhiloxEngine random(seed);
  for (std::int64_t i = 0; i < count; ++i) {  // the first steps of a shuffle
    const auto left = static_cast<std::uint64_t>(total - i);
    const auto pick = i + static_cast<std::int64_t>((std::uint64_t{random()} * left) >> 32);
    std::swap(all[static_cast<std::size_t>(i)], all[static_cast<std::size_t>(pick)]);
  }
  all.resize(static_cast<std::size_t>(count));
  std::ranges::sort(all);
  return all;
}

}  // namespace

Result<TokenText> LoadText(const std::filesystem::path& file, const std::string& name,
                           const Checkpoint& model, const Tokenizer& tokenizer) {
  NIBBLE_TRY(text, ReadFile(file, kMaxFileBytes));
  std::int64_t num_rows = 0;
  NIBBLE_TRY(tokens, TokensOf(file, text, model, tokenizer, num_rows));
  NIBBLE_TRY_VOID(CheckVocabulary(file, model, tokens));
  return TokenText{.name = name,
                   .sha256 = Sha256Hex(std::as_bytes(std::span(text))),
                   .tokens = std::move(tokens)};
}

Result<CalibrationSet> LoadCalibration(const std::filesystem::path& file, const Checkpoint& model,
                                       const Tokenizer& tokenizer,
                                       const CalibrationOptions& options) {
  if (options.num_samples < 1 || options.length < 2) {
    return Fail(ErrorCode::kInvalidArgument,
                "--calibration-samples takes 1 or more, --calibration-length 2 or more");
  }
  NIBBLE_TRY(text, ReadFile(file, kMaxFileBytes));
  std::int64_t num_rows = 0;
  NIBBLE_TRY(tokens, TokensOf(file, text, model, tokenizer, num_rows));
  NIBBLE_TRY_VOID(CheckVocabulary(file, model, tokens));
  if (tokens.empty() || text.find_first_not_of(" \t\r\n") == std::string::npos) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: there is no text in it; give text like what the model will read, "
                            "or leave --calibration out to round without it",
                            file.string()));
  }
  const std::int64_t longest = model.config().max_position_embeddings;
  if (options.length > longest) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("--calibration-length {}: the model has {} positions; give that or "
                            "less",
                            options.length, longest));
  }
  const std::int64_t windows = static_cast<std::int64_t>(tokens.size()) / options.length;
  if (windows == 0) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: {} tokens are less than one sample of {}; give more text, or a "
                            "smaller --calibration-length",
                            file.string(), tokens.size(), options.length));
  }
  CalibrationSet set{.length = options.length};
  for (const std::int64_t window :
       Choose(windows, std::min(windows, options.num_samples), options.seed)) {
    const auto begin = tokens.begin() + window * options.length;
    set.tokens.insert(set.tokens.end(), begin, begin + options.length);
  }
  BeginWindows(model.config(), set.length, set.tokens);
  json::Object& identity = set.identity;
  identity.Set("file", file.filename().string());
  identity.Set("sha256", Sha256Hex(std::as_bytes(std::span(text))));
  identity.Set("rows", num_rows);
  identity.Set("tokens_in_file", static_cast<std::int64_t>(tokens.size()));
  identity.Set("samples", set.num_windows());
  identity.Set("length", set.length);
  identity.Set("seed", options.seed);
  identity.Set("tokens_sha256", Sha256Hex(std::as_bytes(std::span(set.tokens))));
  return set;
}

}  // namespace nibble
