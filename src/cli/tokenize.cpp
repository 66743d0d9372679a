// nibble tokenize: a model's tokenizer on standard input and output.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"
#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "json/value.h"
#include "tokenizer/tokenizer.h"

namespace nibble::cli {
namespace {

/// The tokenizer alone: no weights and no config.json are needed.
Result<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& path,
                                                 const Environment& environment) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return Tokenizer::FromFolder(path);
  }
  if (!std::filesystem::exists(path, error)) {
    NIBBLE_TRY(snapshot, FindInHubCache(path, environment.hub_cache));
    return Tokenizer::FromFolder(snapshot.string());
  }
  NIBBLE_TRY(checkpoint, Checkpoint::Open(path, environment.hub_cache));
  if (!checkpoint->gguf_vocabulary()) {
    return Fail(ErrorCode::kNotFound, fmt::format("{}: it has no tokenizer.ggml.tokens", path));
  }
  return Tokenizer::FromGguf(*checkpoint->gguf_vocabulary(), path);
}

json::Value IdsToJson(const std::vector<TokenId>& ids) {
  json::Array list;
  list.reserve(ids.size());
  for (const TokenId id : ids) {
    list.emplace_back(std::int64_t{Raw(id)});
  }
  return list;
}

Result<std::vector<TokenId>> IdsFromJson(const json::Array& list) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const json::Value& value : list) {
    const auto id = value.AsInt();
    if (!id || *id < 0 || *id > std::numeric_limits<std::int32_t>::max()) {
      return Fail(ErrorCode::kInvalidArgument, "\"ids\" must hold token ids");
    }
    ids.push_back(TokenId{static_cast<std::int32_t>(*id)});
  }
  return ids;
}

Result<json::Object> Answer(const Tokenizer& tokenizer, std::string_view line) {
  NIBBLE_TRY(request, json::Parse(line));
  const json::Value* text = request.Find("text");
  const json::Value* ids = request.Find("ids");
  json::Object answer;
  if (text != nullptr && text->IsString() && ids == nullptr) {
    const std::string& value = *text->AsString();
    answer.Set("ids", IdsToJson(tokenizer.Encode(value, {.parse_special = true})));
    answer.Set("ids_special", IdsToJson(tokenizer.Encode(
                                  value, {.add_special_tokens = true, .parse_special = true})));
  } else if (ids != nullptr && ids->IsArray() && text == nullptr) {
    NIBBLE_TRY(list, IdsFromJson(*ids->AsArray()));
    answer.Set("text", tokenizer.Decode(list));
  } else {
    return Fail(ErrorCode::kInvalidArgument,
                "expected {\"text\": \"...\"} or {\"ids\": [...]} on each line");
  }
  return answer;
}

class TokenizeCommand final : public Command {
 public:
  std::string name() const override { return "tokenize"; }
  std::string summary() const override { return "turn text into token ids and back"; }
  std::string description() const override {
    return "Needs a tokenizer only: a folder with tokenizer.json, or a .gguf (its vocabulary "
           "suffices). Reads standard input.\n"
           "With --jsonl, one request a line:\n"
           "  {\"text\": \"...\"} -> {\"ids\": [...], \"ids_special\": [...]}   the latter with "
           "<s> and the like around it\n"
           "  {\"ids\": [...]}  -> {\"text\": \"...\"}\n"
           "Tokens spelled out in the text, such as <|im_end|>, are recognised. Without --jsonl "
           "all of the input is one text.\n\n"
           "  echo '{\"text\": \"Hello\"}' | nibble tokenize model.gguf --jsonl\n"
           "  nibble tokenize folder < README.md";
  }
  void Declare(OptionSet& options) override {
    options.Positional("MODEL", &model_,
                       "a folder with tokenizer.json, a .gguf file, or a name in the hub cache");
    options.Add("--jsonl", &jsonl_, "one JSON request a line, one JSON answer a line");
  }

  Result<int> Run(const Environment& environment) override {
    NIBBLE_TRY(tokenizer, OpenTokenizer(model_, environment));
    return jsonl_ ? RunLines(*tokenizer) : RunText(*tokenizer);
  }

 private:
  static int RunLines(const Tokenizer& tokenizer) {
    int exit_code = kExitOk;
    for (std::string line; std::getline(std::cin, line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) {
        continue;
      }
      auto answer = Answer(tokenizer, line);
      if (!answer) {
        json::Object error;
        error.Set("error", answer.error().message);
        answer = std::move(error);
        exit_code = kExitFailure;
      }
      fmt::print("{}\n", json::Dump(json::Value(std::move(*answer)),
                                    {.item_separator = ", ", .key_separator = ": "}));
      std::fflush(stdout);  // a program at the other end may wait for this line
    }
    return exit_code;
  }

  static int RunText(const Tokenizer& tokenizer) {
    const std::string text{std::istreambuf_iterator<char>(std::cin),
                           std::istreambuf_iterator<char>()};
    const std::vector<TokenId> ids = tokenizer.Encode(text, {.parse_special = true});
    for (std::size_t i = 0; i < ids.size(); ++i) {
      fmt::print("{}{}", i == 0 ? "" : " ", Raw(ids[i]));
    }
    fmt::print("\n");
    return kExitOk;
  }

  std::string model_;
  bool jsonl_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeTokenizeCommand() { return std::make_unique<TokenizeCommand>(); }

}  // namespace nibble::cli
