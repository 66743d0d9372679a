#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

/// A text file that grows by whole lines, for work that may be killed at any moment: what was
/// appended stays, and a last line that was not finished is cut off when the file is opened again.
/// One process at a time.
class AppendLog {
 public:
  /// Opens or creates. Errors: kUnavailable if another process has it; kLimitExceeded above
  /// max_bytes; kIo.
  static Result<std::unique_ptr<AppendLog>> Open(const std::filesystem::path& path,
                                                 std::size_t max_bytes);
  ~AppendLog();
  AppendLog(const AppendLog&) = delete;
  AppendLog& operator=(const AppendLog&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// The lines that were there when it was opened.
  const std::vector<std::string>& lines() const { return lines_; }
  /// `line` has no line break.
  Result<void> Append(std::string_view line);
  /// Deletes the file: it is not needed any more.
  Result<void> Remove();

 private:
  AppendLog() = default;
  std::filesystem::path path_;
  std::vector<std::string> lines_;
  int fd_ = -1;
};

}  // namespace nibble
