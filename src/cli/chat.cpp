// nibble chat: a conversation on the terminal.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <string>

#include "cli/command.h"
#include "cli/generate.h"
#include "cli/model_text.h"
#include "cli/progress.h"
#include "cli/sampling_flags.h"
#include "cli/session.h"

namespace nibble::cli {
namespace {

class ChatCommand final : public Command {
 public:
  std::string name() const override { return "chat"; }
  std::string summary() const override { return "talk with a model on the terminal"; }
  std::string description() const override {
    return "One line is one message. /clear forgets the conversation, /exit or the end of the "
           "input leaves. The answers go to\n"
           "standard output, everything else to standard error.\n\n"
           "  nibble chat smol-int4 --system \"You are brief.\"";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    options.Text("--system", &system_, "the system message");
    options.Add("--chat-template", &template_file_,
                "a .jinja file instead of the model's template");
    sampling_.Declare(options);
    flags_.DeclareEngine(options);
  }

  Result<int> Run(const Environment& environment) override {
    flags_.max_num_seqs = 1;
    NIBBLE_TRY(model, LoadModel(flags_, {}, environment));
    model.device->pool().PinCaller();
    NIBBLE_TRY(engine, MakeEngine(model, flags_));
    NIBBLE_TRY(text, TextOfModel::Create(*model.checkpoint, *model.tokenizer, template_file_));
    CatchInterrupts();
    ChatPrompt conversation = Fresh();
    std::string line;
    while (!Progress::interrupted() && ReadLine(line)) {
      if (line == "/exit") {
        break;
      }
      if (line == "/clear") {
        conversation = Fresh();
        continue;
      }
      if (line.empty()) {
        continue;
      }
      Say(conversation, "user", line);
      NIBBLE_TRY(answer, Answer(*engine, *text, conversation));
      std::fputc('\n', stdout);
      std::fflush(stdout);
      Say(conversation, "assistant", answer);
    }
    return Progress::interrupted() ? 130 : kExitOk;
  }

 private:
  ChatPrompt Fresh() const {
    ChatPrompt conversation;
    if (!system_.empty()) {
      Say(conversation, "system", system_);
    }
    return conversation;
  }
  static void Say(ChatPrompt& conversation, const char* role, const std::string& content) {
    json::Object message;
    message.Set("role", role);
    message.Set("content", content);
    conversation.messages.push_back(std::move(message));
  }
  static bool ReadLine(std::string& line) {
    if (isatty(STDIN_FILENO) == 1) {
      fmt::print(stderr, "> ");
    }
    return static_cast<bool>(std::getline(std::cin, line));
  }
  Result<std::string> Answer(Engine& engine, const TextOfModel& text,
                             const ChatPrompt& conversation) const {
    NIBBLE_TRY(prompt, text.EncodeChat(conversation, /*add_special_tokens=*/false));
    GenerationRequest request{
        .external_id = "chat", .prompt = std::move(prompt), .sampling = sampling_.ToParams()};
    const auto room =
        engine.config().max_model_len - static_cast<std::int32_t>(request.prompt.size());
    if (room < 1) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("the conversation has grown beyond {} tokens; /clear starts anew",
                              engine.config().max_model_len));
    }
    request.sampling.max_tokens = std::min(request.sampling.max_tokens, room);
    NIBBLE_TRY(generated, GenerateHere(engine, std::move(request), [](std::string_view piece) {
                 std::fwrite(piece.data(), 1, piece.size(), stdout);
                 std::fflush(stdout);
               }));
    return generated.text;
  }

  ModelFlags flags_;
  SamplingFlags sampling_;
  std::string system_, template_file_;
};

}  // namespace

std::unique_ptr<Command> MakeChatCommand() { return std::make_unique<ChatCommand>(); }

}  // namespace nibble::cli
