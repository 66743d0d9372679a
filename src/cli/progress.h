#pragma once

#include <csignal>
#include <cstdint>
#include <string>

#include "base/clock.h"

namespace nibble::cli {

/// A progress line with an ETA on standard error: redrawn in place on a terminal, a line every few
/// seconds elsewhere. SIGINT and SIGTERM set a flag while one lives, so that long work can stop
/// cleanly.
class Progress {
 public:
  /// label: what is being done. Silent if `enabled` is false or while less than a second has
  /// passed.
  explicit Progress(std::string label, bool enabled = true);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Returns false once the user asked to stop.
  bool Update(std::uint64_t done, std::uint64_t total, const std::string& detail = {});
  /// Ends the line.
  void Finish();
  static bool interrupted();

 private:
  std::string label_;
  bool enabled_;
  bool terminal_;
  bool drawn_ = false;
  Clock::TimePoint begin_;
  Clock::TimePoint last_;
};

/// Installs handlers for SIGINT and SIGTERM that set the flag Progress::interrupted; a second
/// signal ends the process.
void CatchInterrupts();

}  // namespace nibble::cli
