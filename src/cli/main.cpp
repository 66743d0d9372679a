// The only reader of argv and of the environment, and the only file that includes CLI11.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/log.h"
#include "cli/command.h"
#include "kernels/isa.h"

#ifndef NIBBLE_VERSION
#define NIBBLE_VERSION "unknown"
#endif

namespace nibble::cli {
namespace {

// What an unset shell variable leaves of "--flag $VARIABLE".
CLI::Validator NotEmpty() {
  return {[](const std::string& value) {
            return value.empty()
                       ? std::string("the value is empty; give one, or leave the flag out")
                       : std::string();
          },
          ""};
}

// CLI11 takes the nearest number for one that is out of range.
CLI::Validator FitsInt64() {
  return {[](const std::string& value) {
            std::int64_t number = 0;
            const auto [end, error] =
                std::from_chars(value.data(), value.data() + value.size(), number);
            return error == std::errc::result_out_of_range
                       ? fmt::format("{} is out of range", value)
                       : std::string();
          },
          ""};
}

class Cli11Options final : public OptionSet {
 public:
  explicit Cli11Options(CLI::App* app) : app_(app) {}

  void Group(const std::string& title) override { group_ = title; }
  void Positional(const std::string& name, std::string* target, const std::string& help,
                  bool required) override {
    app_->add_option(name, *target, help)->required(required)->check(NotEmpty());
  }
  void Add(const std::string& flags, std::string* target, const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(NotEmpty()), !target->empty());
  }
  void Text(const std::string& flags, std::string* target, const std::string& help) override {
    Show(app_->add_option(flags, *target, help), !target->empty());
  }
  void Add(const std::string& flags, std::int64_t* target, const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(NotEmpty())->check(FitsInt64()), true);
  }
  void Add(const std::string& flags, double* target, const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(NotEmpty()), true);
  }
  void Add(const std::string& flags, std::vector<std::string>* target,
           const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(NotEmpty()), false);
  }
  void Add(const std::string& flags, std::optional<std::int64_t>* target,
           const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(NotEmpty())->check(FitsInt64()), false);
  }
  void Add(const std::string& flags, std::optional<double>* target,
           const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(NotEmpty()), false);
  }
  void Add(const std::string& flags, bool* target, const std::string& help) override {
    const std::string both = *target ? fmt::format("{},!--no-{}", flags, flags.substr(2)) : flags;
    Show(app_->add_flag(both, *target, help), false);
  }
  void Choice(const std::string& flags, std::string* target, const std::vector<std::string>& words,
              const std::string& help) override {
    Show(app_->add_option(flags, *target, help)->check(CLI::IsMember(words)), true);
  }

 private:
  void Show(CLI::Option* option, bool has_default) {
    if (!group_.empty()) {
      option->group(group_);
    }
    if (has_default) {
      option->capture_default_str();
    }
  }
  CLI::App* app_;
  std::string group_;
};

std::string EnvironmentVariable(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before any thread starts
  return value == nullptr ? std::string() : std::string(value);
}

// HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else
// ~/.cache/huggingface/hub.
std::string HubCache() {
  if (auto cache = EnvironmentVariable("HF_HUB_CACHE"); !cache.empty()) {
    return cache;
  }
  if (const auto home = EnvironmentVariable("HF_HOME"); !home.empty()) {
    return home + "/hub";
  }
  if (const auto cache = EnvironmentVariable("XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/huggingface/hub";
  }
  return EnvironmentVariable("HOME") + "/.cache/huggingface/hub";
}

int ExitCode(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return kExitUsage;
    case ErrorCode::kNotFound:
    case ErrorCode::kCorruptFile:
    case ErrorCode::kUnsupported:
    case ErrorCode::kLimitExceeded:
      return kExitModel;
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kUnavailable:
      return kExitNoResources;
    case ErrorCode::kCancelled:
      return 130;
    case ErrorCode::kIo:
    case ErrorCode::kInternal:
      return kExitFailure;
  }
  return kExitFailure;
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  Environment environment;
  environment.hub_cache = HubCache();
  environment.api_key = EnvironmentVariable("NIBBLE_API_KEY");
  if (environment.api_key.empty()) {
    environment.api_key = EnvironmentVariable("VLLM_API_KEY");
  }
  std::string isa = EnvironmentVariable("NIBBLE_ISA");
  std::string log_level = "info";

  CLI::App app{"nibble makes language models small and serves them fast."};
  app.set_version_flag("--version", fmt::format("nibble {} ({})", NIBBLE_VERSION, DescribeCpu()));
  app.add_option("--isa", isa,
                 "kernels to use at most: ref, avx2, avx512 (default: the best this machine has)");
  app.add_option("--threads", environment.num_threads,
                 "worker threads (default: one per usable core)")
      ->check(CLI::Range(0, 1024));
  app.add_option("--log-level", log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  app.fallthrough();
  app.require_subcommand(1);
  app.footer(
      "Start here:  nibble run MODEL --prompt \"Hello\"      Each command explains itself: nibble "
      "COMMAND --help");

  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(MakeRunCommand());
  commands.push_back(MakeChatCommand());
  commands.push_back(MakeServeCommand());
  commands.push_back(MakeQuantizeCommand());
  commands.push_back(MakeConvertCommand());
  commands.push_back(MakeEvalCommand());
  commands.push_back(MakeBenchCommand());
  commands.push_back(MakeReportCommand());
  commands.push_back(MakeInspectCommand());
  commands.push_back(MakeVerifyCommand());
  commands.push_back(MakeTokenizeCommand());
  commands.push_back(MakeRenderCommand());
  commands.push_back(MakeKernelsCommand());
  commands.push_back(MakeDoctorCommand());
  for (const auto& command : commands) {
    CLI::App* sub = app.add_subcommand(command->name(), command->summary());
    sub->footer(command->description());
    Cli11Options options(sub);
    command->Declare(options);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kExitOk : kExitUsage;
  }
  SetLogLevel(log_level == "debug"     ? LogLevel::kDebug
              : log_level == "warning" ? LogLevel::kWarning
              : log_level == "error"   ? LogLevel::kError
                                       : LogLevel::kInfo);
  if (!isa.empty()) {
    const auto level = ParseIsa(isa);
    if (!level || !ForceIsa(*level)) {
      fmt::print(stderr, "nibble: --isa {}: {}; this machine has: {}\n", isa,
                 level ? "not available here" : "unknown, use ref, avx2 or avx512", DescribeCpu());
      return kExitUsage;
    }
  }
  for (const auto& command : commands) {
    if (!app.got_subcommand(command->name())) {
      continue;
    }
    const Result<int> code = command->Run(environment);
    if (!code) {
      fmt::print(stderr, "nibble {}: {}\n", command->name(), code.error().message);
      return ExitCode(code.error().code);
    }
    return *code;
  }
  return kExitUsage;
}

}  // namespace
}  // namespace nibble::cli

int main(int argc, char** argv) {
  try {
    return nibble::cli::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("nibble: out of memory\n", stderr);
    return nibble::cli::kExitNoResources;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nibble: %s\n", error.what());
    return nibble::cli::kExitFailure;
  }
}
