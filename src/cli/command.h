#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace nibble::cli {

// Exit codes, documented in the README.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;      // something went wrong while running
inline constexpr int kExitUsage = 2;        // wrong flag or configuration
inline constexpr int kExitGate = 3;         // a quality gate was missed
inline constexpr int kExitModel = 4;        // the model is missing, corrupt or unsupported
inline constexpr int kExitNoResources = 5;  // out of memory, or no such device

/// What of the environment a command may see. main.cpp is the only reader of environment variables.
struct Environment {
  std::string hub_cache;  // folder of the Hugging Face hub cache
  std::string api_key;    // NIBBLE_API_KEY, or VLLM_API_KEY
  int num_threads = 0;    // --threads; 0: one worker per usable core
};

/// Declares the flags of one subcommand. Targets hold the default before and the value after
/// parsing; `help` is one line. Flags may carry aliases: "--port,-p". An empty value, as an unset
/// shell variable leaves it, is refused; so is a whole number that 64 bits do not hold.
class OptionSet {
 public:
  virtual ~OptionSet() = default;
  /// Starts a titled group of flags in --help.
  virtual void Group(const std::string& title) = 0;
  virtual void Positional(const std::string& name, std::string* target, const std::string& help,
                          bool required = true) = 0;
  virtual void Add(const std::string& flags, std::string* target, const std::string& help) = 0;
  /// The same for a text that may be empty.
  virtual void Text(const std::string& flags, std::string* target, const std::string& help) = 0;
  virtual void Add(const std::string& flags, std::int64_t* target, const std::string& help) = 0;
  virtual void Add(const std::string& flags, double* target, const std::string& help) = 0;
  virtual void Add(const std::string& flags, std::vector<std::string>* target,
                   const std::string& help) = 0;
  virtual void Add(const std::string& flags, std::optional<std::int64_t>* target,
                   const std::string& help) = 0;
  virtual void Add(const std::string& flags, std::optional<double>* target,
                   const std::string& help) = 0;
  /// A switch; also declares --no-NAME if the default is true.
  virtual void Add(const std::string& flags, bool* target, const std::string& help) = 0;
  /// One of a fixed set of words.
  virtual void Choice(const std::string& flags, std::string* target,
                      const std::vector<std::string>& words, const std::string& help) = 0;
};

/// One subcommand: one file in cli/.
class Command {
 public:
  virtual ~Command() = default;
  virtual std::string name() const = 0;
  virtual std::string summary() const = 0;  // one line of `nibble --help`
  /// Teaches: what it does, then one or two examples. Shown below the flags.
  virtual std::string description() const = 0;
  virtual void Declare(OptionSet& options) = 0;
  /// Runs after parsing; returns the exit code. An Error is printed to standard error and mapped to
  /// an exit code.
  virtual Result<int> Run(const Environment& environment) = 0;
};

std::unique_ptr<Command> MakeBenchCommand();
std::unique_ptr<Command> MakeChatCommand();
std::unique_ptr<Command> MakeConvertCommand();
std::unique_ptr<Command> MakeDoctorCommand();
std::unique_ptr<Command> MakeEvalCommand();
std::unique_ptr<Command> MakeInspectCommand();
std::unique_ptr<Command> MakeKernelsCommand();
std::unique_ptr<Command> MakeQuantizeCommand();
std::unique_ptr<Command> MakeRenderCommand();
std::unique_ptr<Command> MakeReportCommand();
std::unique_ptr<Command> MakeRunCommand();
std::unique_ptr<Command> MakeServeCommand();
std::unique_ptr<Command> MakeTokenizeCommand();
std::unique_ptr<Command> MakeVerifyCommand();

}  // namespace nibble::cli
