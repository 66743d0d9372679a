// nibble render: a chat template on standard input and output.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "io/file.h"
#include "io/gguf.h"
#include "json/value.h"
#include "template/chat.h"

namespace nibble::cli {
namespace {

/// A template's source, and what the model calls its first and last token.
struct Source {
  std::optional<std::string> text;  // none: the model has no template
  json::Object tokens;              // bos_token, eos_token, as far as known
};

/// "chat_template" of tokenizer_config.json: the text, or the one named "default" of a list.
std::optional<std::string> TemplateIn(const json::Value& config) {
  const json::Value* const value = config.Find("chat_template");
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const std::string* const text = value->AsString()) {
    return *text;
  }
  if (const json::Array* const list = value->AsArray()) {
    for (const json::Value& entry : *list) {
      const json::Value* const name = entry.Find("name");
      const json::Value* const text = entry.Find("template");
      if (name != nullptr && name->AsString() != nullptr && *name->AsString() == "default" &&
          text != nullptr && text->AsString() != nullptr) {
        return *text->AsString();
      }
    }
  }
  return std::nullopt;
}

Result<Source> FromFolder(const std::filesystem::path& folder) {
  Source source;
  std::error_code error;
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  if (std::filesystem::exists(config_path, error)) {
    NIBBLE_TRY(config, json::ParseFile(config_path.string()));
    source.text = TemplateIn(config);
    for (const char* const name : {"bos_token", "eos_token"}) {
      const json::Value* token = config.Find(name);
      // Written as a text, or as the object that describes an added token.
      token = token != nullptr && token->IsObject() ? token->Find("content") : token;
      if (token != nullptr && token->IsString()) {
        source.tokens.Set(name, *token);
      }
    }
  }
  const std::filesystem::path file = folder / "chat_template.jinja";
  if (std::filesystem::exists(file, error)) {
    NIBBLE_TRY(text, ReadFile(file, limits::kTemplateBytes));
    source.text = std::move(text);
  }
  return source;
}

Result<Source> FromGguf(const std::filesystem::path& path) {
  NIBBLE_TRY(file, GgufFile::Open(path));
  Source source;
  source.text = file->String("tokenizer.chat_template");
  const GgufValue* const value = file->header().Find("tokenizer.ggml.tokens");
  const auto* const tokens =
      value != nullptr ? std::get_if<std::vector<std::string>>(value) : nullptr;
  for (const std::string name : {"bos", "eos"}) {
    const auto id = file->Int(fmt::format("tokenizer.ggml.{}_token_id", name));
    if (tokens != nullptr && id && *id >= 0 && static_cast<std::size_t>(*id) < tokens->size()) {
      source.tokens.Set(name + "_token", (*tokens)[static_cast<std::size_t>(*id)]);
    }
  }
  return source;
}

Result<Source> OpenSource(const std::string& path, const Environment& environment) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return FromFolder(path);
  }
  if (!std::filesystem::exists(path, error)) {
    NIBBLE_TRY(snapshot, FindInHubCache(path, environment.hub_cache));
    return FromFolder(snapshot);
  }
  if (path.ends_with(".gguf")) {
    return FromGguf(path);
  }
  NIBBLE_TRY(text, ReadFile(path, limits::kTemplateBytes));
  return Source{.text = std::move(text), .tokens = {}};
}

class RenderCommand final : public Command {
 public:
  std::string name() const override { return "render"; }
  std::string summary() const override { return "turn a conversation into a prompt's text"; }
  std::string description() const override {
    return "Runs a chat template as transformers would, within limits of work and size. Standard "
           "input holds the template's variables as a JSON object: messages, tools, bos_token, "
           "add_generation_prompt, ... and optionally \"now\": \"2025-01-15T10:30:00\", the time "
           "that strftime_now sees. bos_token and eos_token default to the model's.\n"
           "With --jsonl, one object a line -> {\"text\": \"...\"} or {\"error\": \"...\"}.\n\n"
           "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], "
           "\"add_generation_prompt\": true}' | nibble render model.gguf\n"
           "  nibble render template.jinja --jsonl < conversations.jsonl";
  }
  void Declare(OptionSet& options) override {
    options.Positional("PATH", &path_,
                       "a .jinja file, a folder with chat_template.jinja or tokenizer_config.json, "
                       "a .gguf file, or a name in the hub cache");
    options.Add("--jsonl", &jsonl_, "one JSON object a line, one JSON answer a line");
  }

  Result<int> Run(const Environment& environment) override {
    NIBBLE_TRY(source, OpenSource(path_, environment));
    if (!source.text) {
      fmt::print(stderr, "{}: it has no chat template; using ChatML\n", path_);
    }
    auto chat = source.text ? ChatTemplate::Parse(*source.text) : ChatTemplate::Default();
    if (!chat) {
      return Fail(std::move(chat.error()), path_ + ": ");
    }
    if (jsonl_) {
      RunLines(chat->jinja(), source.tokens);
      return kExitOk;  // an error of a line is its answer
    }
    const std::string input{std::istreambuf_iterator<char>(std::cin),
                            std::istreambuf_iterator<char>()};
    NIBBLE_TRY(text, Answer(chat->jinja(), source.tokens, input));
    std::fwrite(text.data(), 1, text.size(), stdout);
    return kExitOk;
  }

 private:
  static Result<std::string> Answer(const jinja::Template& chat_template,
                                    const json::Object& tokens, std::string_view line) {
    NIBBLE_TRY(request, json::Parse(line));
    if (!request.IsObject()) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("expected an object with the template's variables, not {}",
                              request.TypeName()));
    }
    json::Object variables = std::move(*request.AsObject());
    jinja::RenderOptions options;
    if (const json::Value* const now = variables.Find("now"); now != nullptr && !now->IsNull()) {
      if (now->AsString() == nullptr) {
        return Fail(ErrorCode::kInvalidArgument, "\"now\" must be a string");
      }
      options.now = *now->AsString();
      variables.Erase("now");
    }
    for (const auto& [name, token] : tokens) {
      if (variables.Find(name) == nullptr) {
        variables.Set(name, token);
      }
    }
    return chat_template.Render(variables, options);
  }

  static void RunLines(const jinja::Template& chat_template, const json::Object& tokens) {
    for (std::string line; std::getline(std::cin, line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) {
        continue;
      }
      const auto text = Answer(chat_template, tokens, line);
      json::Object answer;
      answer.Set(text ? "text" : "error", text ? *text : text.error().message);
      fmt::print("{}\n", json::Dump(json::Value(std::move(answer)),
                                    {.item_separator = ", ", .key_separator = ": "}));
      std::fflush(stdout);  // a program at the other end may wait for this line
    }
  }

  std::string path_;
  bool jsonl_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeRenderCommand() { return std::make_unique<RenderCommand>(); }

}  // namespace nibble::cli
