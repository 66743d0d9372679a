#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

/// What a program may use before it is ended. The defaults give what human-eval's three seconds
/// give on an idle machine.
struct SandboxLimits {
  int cpu_seconds = 3;
  std::chrono::milliseconds wall{10'000};
  std::uint64_t memory_bytes = std::uint64_t{1} << 30;  // of address space
  std::uint64_t file_bytes = std::uint64_t{16} << 20;   // of each file
};

struct SandboxOutcome {
  enum class Kind { kPassed, kFailed, kTimedOut };
  Kind kind = Kind::kFailed;
  std::string error;  // the last line that the program wrote on standard error; no UTF-8 promised
};

/// Runs Python programs that a model wrote. Each has a process and a folder of its own, and none
/// of: network, child processes, signals to others, writing outside its folder, more than
/// SandboxLimits. docs/sandbox.md says how, and what is left open.
class PythonSandbox {
 public:
  /// Errors: kUnavailable with what to install or where not to run: no python3, or a kernel that
  /// cannot hold a program so.
  static Result<PythonSandbox> Create(const SandboxLimits& limits = {});

  /// Executes the program's text to its end, with __name__ other than "__main__", as human-eval
  /// does. It passes if it ends without an exception, and not by exit(). Errors: kIo.
  Result<SandboxOutcome> Run(std::string_view program) const;

  /// "own namespaces, Landlock, seccomp": what holds on this machine.
  const std::string& layers() const { return layers_; }

 private:
  SandboxLimits limits_;
  std::string python_;
  std::string layers_;
  bool namespaces_ = false;
};

}  // namespace nibble
