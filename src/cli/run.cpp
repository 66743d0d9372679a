// nibble run: one prompt, one answer, on standard output.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "cli/command.h"
#include "cli/generate.h"
#include "cli/model_text.h"
#include "cli/progress.h"
#include "cli/sampling_flags.h"
#include "cli/session.h"
#include "json/value.h"

namespace nibble::cli {
namespace {

class RunCommand final : public Command {
 public:
  std::string name() const override { return "run"; }
  std::string summary() const override { return "continue one prompt"; }
  std::string description() const override {
    return "Continues the prompt as it stands, greedily, and writes nothing else to standard "
           "output. With --chat the prompt is\n"
           "the user's message and goes through the model's chat template.\n\n"
           "  nibble run smol-int4 --prompt \"The capital of France is\" --max-tokens 8\n"
           "  nibble run smol-int4 --chat --prompt \"What is the capital of France?\"";
  }
  void Declare(OptionSet& options) override {
    flags_.DeclareModel(options);
    options.Text("--prompt,-p", &prompt_, "the text to continue");
    options.Add("--chat", &chat_, "treat the prompt as a chat message");
    options.Text("--system", &system_, "with --chat: the system message");
    options.Add("--chat-template", &template_file_,
                "a .jinja file instead of the model's template");
    options.Add("--json", &json_, "print one JSON object: text, tokens, finish_reason, timings");
    sampling_.Declare(options);
    flags_.DeclareEngine(options);
  }

  Result<int> Run(const Environment& environment) override {
    if (prompt_.empty()) {
      return Fail(ErrorCode::kInvalidArgument, "--prompt TEXT is missing");
    }
    CatchInterrupts();
    flags_.max_num_seqs = 1;
    NIBBLE_TRY(model, LoadModel(flags_, {}, environment));
    model.device->pool().PinCaller();
    NIBBLE_TRY(engine, MakeEngine(model, flags_));
    NIBBLE_TRY(text, TextOfModel::Create(*model.checkpoint, *model.tokenizer, template_file_));
    GenerationRequest request{.external_id = "run", .sampling = sampling_.ToParams()};
    if (chat_) {
      NIBBLE_TRY(prompt,
                 text->EncodeChat(UserTurn(system_, prompt_), /*add_special_tokens=*/false));
      request.prompt = std::move(prompt);
    } else {
      request.prompt = text->Encode(prompt_, /*add_special_tokens=*/true);
    }
    const auto room =
        engine->config().max_model_len - static_cast<std::int32_t>(request.prompt.size());
    request.sampling.max_tokens = std::min(request.sampling.max_tokens, std::max(1, room));
    NIBBLE_TRY(generated, GenerateHere(*engine, std::move(request), [&](std::string_view piece) {
                 if (!json_) {
                   std::fwrite(piece.data(), 1, piece.size(), stdout);
                   std::fflush(stdout);
                 }
               }));
    if (json_) {
      PrintJson(generated);
    } else {
      std::fputc('\n', stdout);
    }
    return generated.finish == FinishReason::kCancelled ? 130 : kExitOk;
  }

 private:
  void PrintJson(const Generated& generated) const {
    json::Array tokens;
    for (const TokenId token : generated.tokens) {
      tokens.push_back(Raw(token));
    }
    json::Object out;
    out.Set("text", generated.text);
    out.Set("tokens", std::move(tokens));
    out.Set("finish_reason", Name(generated.finish));
    out.Set("prompt_tokens", generated.num_prompt_tokens);
    out.Set("seconds_to_first_token", generated.seconds_to_first);
    out.Set("seconds", generated.seconds);
    fmt::print("{}\n", json::Dump(out, {.item_separator = ", ", .key_separator = ": "}));
  }

  ModelFlags flags_;
  SamplingFlags sampling_;
  std::string prompt_, system_, template_file_;
  bool chat_ = false;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeRunCommand() { return std::make_unique<RunCommand>(); }

}  // namespace nibble::cli
