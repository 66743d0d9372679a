#include "eval/python_sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/clock.h"
#include "base/random.h"
#include "eval/sandbox_child.h"

namespace nibble {
namespace {

constexpr const char* kPythons[] = {"/usr/bin/python3", "/usr/local/bin/python3"};
constexpr std::size_t kKeptOutput = 4096;

// Runs the file as human-eval does, by exec in an empty namespace, and shows that it got to the end
// by a word that the program was not told.
constexpr const char* kDriver =
    "import os, sys\n"
    "word = sys.argv.pop()\n"
    "exec(compile(open('program.py', encoding='utf-8').read(), 'program.py', 'exec'), {})\n"
    "os.write(2, word.encode())\n";

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { Close(); }
  int get() const { return fd_; }
  void Close() {
    if (fd_ >= 0) {
      close(std::exchange(fd_, -1));
    }
  }

 private:
  int fd_ = -1;
};

tl::unexpected<Error> FailIo(const char* what) {
  return Fail(ErrorCode::kIo,
              fmt::format("the sandbox: {}: {}", what,
                          std::error_code(errno, std::generic_category()).message()));
}

// A new folder with the program in it, gone with this object.
class ProgramFolder {
 public:
  static Result<ProgramFolder> Create(std::string_view program) {
    std::error_code error;
    std::string name =
        (std::filesystem::temp_directory_path(error) / "nibble_program_XXXXXX").string();
    if (error || mkdtemp(name.data()) == nullptr) {
      return FailIo("a temporary folder");
    }
    ProgramFolder folder(std::move(name));
    std::ofstream file(folder.path_ + "/program.py", std::ios::binary);
    file.write(program.data(), static_cast<std::streamsize>(program.size()));
    file.close();
    if (!file) {
      return FailIo("writing the program");
    }
    return folder;
  }
  ProgramFolder(ProgramFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ~ProgramFolder() {
    std::error_code ignored;
    if (!path_.empty()) {
      std::filesystem::remove_all(path_, ignored);
    }
  }
  const char* path() const { return path_.c_str(); }

 private:
  explicit ProgramFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Takes what is there; false at the end of the stream.
bool ReadSome(int fd, std::string& output) {
  std::array<char, kKeptOutput> buffer{};
  const ssize_t count = read(fd, buffer.data(), buffer.size());
  if (count > 0) {
    output.append(buffer.data(), static_cast<std::size_t>(count));
    output.erase(0, output.size() > kKeptOutput ? output.size() - kKeptOutput : 0);
  }
  return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR));
}

// Collects output until the process has ended (true) or the time is over (false).
bool WaitForEnd(int output_fd, int pidfd, std::chrono::milliseconds wall, std::string& output) {
  const Clock::TimePoint deadline = SystemClock().Now() + wall;
  bool open = true;
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - SystemClock().Now()).count();
    if (left <= 0) {
      return false;
    }
    pollfd events[] = {{.fd = pidfd, .events = POLLIN, .revents = 0},
                       {.fd = open ? output_fd : -1, .events = POLLIN, .revents = 0}};
    if (poll(events, 2, static_cast<int>(left)) < 0 && errno != EINTR) {
      return false;
    }
    if (events[1].revents != 0) {
      open = ReadSome(output_fd, output);
    } else if (events[0].revents != 0) {
      return true;  // and no output is left
    }
  }
}

std::string LastLine(std::string_view text) {
  while (text.ends_with('\n')) {
    text.remove_suffix(1);
  }
  return std::string(text.substr(text.rfind('\n') + 1));
}

}  // namespace

Result<PythonSandbox> PythonSandbox::Create(const SandboxLimits& limits) {
  PythonSandbox sandbox;
  sandbox.limits_ = limits;
  const auto* python =
      std::ranges::find_if(kPythons, [](const char* path) { return access(path, X_OK) == 0; });
  if (python == std::end(kPythons)) {
    return Fail(ErrorCode::kUnavailable,
                "this task runs Python programs, and there is no python3 at /usr/bin or "
                "/usr/local/bin: install it (apt install python3)");
  }
  sandbox.python_ = *python;
  sandbox.namespaces_ = CanMakeNamespaces();
  sandbox.layers_ = fmt::format("{}{}seccomp", sandbox.namespaces_ ? "own namespaces, " : "",
                                LandlockVersion() > 0 ? "Landlock, " : "");
  NIBBLE_TRY(trial, sandbox.Run("pass"));
  if (trial.kind != SandboxOutcome::Kind::kPassed) {
    return Fail(ErrorCode::kUnavailable,
                fmt::format("this task runs Python programs that a model wrote, and this machine "
                            "cannot hold one safely ({}): it needs seccomp and close_range (Linux "
                            "5.9), and a python3 that starts within the limits",
                            trial.error.empty() ? "an empty program did not end" : trial.error));
  }
  return sandbox;
}

Result<SandboxOutcome> PythonSandbox::Run(std::string_view program) const {
  NIBBLE_TRY(folder, ProgramFolder::Create(program));
  int ends[2] = {-1, -1};
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return FailIo("a pipe");
  }
  const Fd output_end(ends[0]);
  Fd input_end(ends[1]);
  fcntl(output_end.get(), F_SETFL, O_NONBLOCK);
  const Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null.get() < 0) {
    return FailIo("/dev/null");
  }
  const std::string word = fmt::format("{:016x}{:016x}", Entropy(), Entropy());
  // -I: nothing from the environment, the user's packages or the working folder.
  const char* const arguments[] = {python_.c_str(), "-I",         "-B",   "-c",
                                   kDriver,         word.c_str(), nullptr};
  int pidfd = -1;
  const pid_t pid = StartSandboxChild({.folder = folder.path(),
                                       .arguments = arguments,
                                       .null_fd = null.get(),
                                       .output_fd = input_end.get(),
                                       .limits = limits_,
                                       .namespaces = namespaces_},
                                      pidfd);
  if (pid < 0) {
    return FailIo("starting a process");
  }
  const Fd process(pidfd);
  input_end.Close();
  std::string output;
  const bool ended = WaitForEnd(output_end.get(), process.get(), limits_.wall, output);
  kill(-pid, SIGKILL);  // whatever of it is left
  kill(pid, SIGKILL);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  SandboxOutcome outcome;
  if (ended && WIFEXITED(status) && WEXITSTATUS(status) == 0 && output.ends_with(word)) {
    outcome.kind = SandboxOutcome::Kind::kPassed;
    return outcome;
  }
  // The first process of a namespace does not get SIGXCPU, but SIGKILL a second later.
  const bool cpu_is_used =
      WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL);
  outcome.kind =
      ended && !cpu_is_used ? SandboxOutcome::Kind::kFailed : SandboxOutcome::Kind::kTimedOut;
  outcome.error = LastLine(output);
  return outcome;
}

}  // namespace nibble
