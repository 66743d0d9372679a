#include "io/append_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "io/file.h"

namespace nibble {
namespace {

constexpr mode_t kFileMode = 0666;  // less the umask

tl::unexpected<Error> SystemError(const std::filesystem::path& path, const char* what) {
  return Fail(ErrorCode::kIo, fmt::format("{}: cannot {}: {}", path.string(), what,
                                          std::generic_category().message(errno)));
}

}  // namespace

Result<std::unique_ptr<AppendLog>> AppendLog::Open(const std::filesystem::path& path,
                                                   std::size_t max_bytes) {
  std::unique_ptr<AppendLog> log(new AppendLog);
  log->path_ = path;
  log->fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, kFileMode);
  if (log->fd_ < 0) {
    return SystemError(path, "open");
  }
  if (flock(log->fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return SystemError(path, "lock");
    }
    return Fail(ErrorCode::kUnavailable,
                fmt::format("{}: another process is writing it; wait for that, or choose another "
                            "file",
                            path.string()));
  }
  NIBBLE_TRY(text, ReadFile(path, max_bytes));
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    log->lines_.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (begin < text.size() && ftruncate(log->fd_, static_cast<off_t>(begin)) != 0) {
    return SystemError(path, "cut off its unfinished last line");
  }
  return log;
}

AppendLog::~AppendLog() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

Result<void> AppendLog::Append(std::string_view line) {
  const std::string text = fmt::format("{}\n", line);
  std::string_view rest = text;
  while (!rest.empty()) {
    const ssize_t written = write(fd_, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return SystemError(path_, "write");
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  return {};
}

Result<void> AppendLog::Remove() {
  if (unlink(path_.c_str()) != 0 && errno != ENOENT) {
    return SystemError(path_, "delete");
  }
  return {};
}

}  // namespace nibble
