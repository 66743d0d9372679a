#include "cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <utility>

namespace nibble::cli {
namespace {

std::atomic<bool> g_interrupted{false};

void OnSignal(int signal) {
  if (g_interrupted.exchange(true)) {
    _exit(128 + signal);
  }
}

std::string Duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  return whole < 60 ? fmt::format("{} s", whole)
                    : fmt::format("{}:{:02} min", whole / 60, whole % 60);
}

}  // namespace

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

Progress::Progress(std::string label, bool enabled)
    : label_(std::move(label)),
      enabled_(enabled),
      terminal_(isatty(STDERR_FILENO) == 1),
      begin_(SystemClock().Now()),
      last_(begin_) {}

Progress::~Progress() { Finish(); }

bool Progress::interrupted() { return g_interrupted.load(); }

bool Progress::Update(std::uint64_t done, std::uint64_t total, const std::string& detail) {
  using Seconds = std::chrono::duration<double>;
  const Clock::TimePoint now = SystemClock().Now();
  const double interval = terminal_ ? 0.2 : 5.0;
  if (enabled_ && Seconds(now - begin_).count() > 1.0 && Seconds(now - last_).count() > interval &&
      total > 0) {
    last_ = now;
    const double share = static_cast<double>(done) / static_cast<double>(total);
    const double left = share > 0.0 ? Seconds(now - begin_).count() * (1.0 - share) / share : 0.0;
    fmt::print(stderr, "{}{}: {:3.0f} %, {} left{}{}{}", terminal_ ? "\r\x1b[K" : "", label_,
               share * 100.0, Duration(left), detail.empty() ? "" : ", ", detail,
               terminal_ ? "" : "\n");
    std::fflush(stderr);
    drawn_ = true;
  }
  return !interrupted();
}

void Progress::Finish() {
  if (drawn_ && terminal_) {
    fmt::print(stderr, "\r\x1b[K");
    drawn_ = false;
  }
}

}  // namespace nibble::cli
