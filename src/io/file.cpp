#include "io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <mutex>
#include <system_error>

namespace nibble {
namespace {

// Where a SIGBUS on this thread jumps to, while a guard is active.
thread_local sigjmp_buf* t_guard = nullptr;
struct sigaction g_previous;

void OnBus(int signal, siginfo_t* info, void* context) {
  if (t_guard != nullptr) {
    siglongjmp(*t_guard, 1);
  }
  if ((g_previous.sa_flags & SA_SIGINFO) != 0 && g_previous.sa_sigaction != nullptr) {
    g_previous.sa_sigaction(signal, info, context);
    return;
  }
  sigaction(signal, &g_previous, nullptr);
  raise(signal);
}

void InstallGuard() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = OnBus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGBUS, &action, &g_previous);
  });
}

std::int64_t ModifiedNs(const struct stat& status) {
  return static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
}

tl::unexpected<Error> SystemError(const std::filesystem::path& path, const char* what) {
  const int error = errno;
  return Fail(error == ENOENT || error == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo,
              fmt::format("{}: cannot {}: {}", path.string(), what,
                          std::generic_category().message(error)));
}

}  // namespace

Result<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::filesystem::path& path) {
  const std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file->fd_ < 0) {
    return SystemError(path, "open");
  }
  struct stat status {};
  if (fstat(file->fd_, &status) != 0) {
    return SystemError(path, "stat");
  }
  if (!S_ISREG(status.st_mode)) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("{}: not a regular file", path.string()));
  }
  file->size_ = static_cast<std::size_t>(status.st_size);
  file->mtime_ns_ = ModifiedNs(status);
  if (file->size_ > 0) {
    void* data = mmap(nullptr, file->size_, PROT_READ, MAP_SHARED, file->fd_, 0);
    if (data == MAP_FAILED) {
      return SystemError(path, "map");
    }
    file->data_ = static_cast<const std::byte*>(data);
  }
  return std::shared_ptr<const MappedFile>(file);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    munmap(const_cast<std::byte*>(data_), size_);
  }
  if (fd_ >= 0) {
    close(fd_);
  }
}

Result<void> MappedFile::CheckUnchanged() const {
  struct stat status {};
  if (fstat(fd_, &status) != 0) {
    return SystemError(path_, "stat");
  }
  if (static_cast<std::size_t>(status.st_size) != size_ || ModifiedNs(status) != mtime_ns_) {
    return Fail(ErrorCode::kCorruptFile,
                fmt::format("{}: the file changed while it was read", path_.string()));
  }
  return {};
}

void MappedFile::Release(std::span<const std::byte> range) const {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(range.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(range.data() + range.size()) / page * page;
  if (end > begin) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

Result<void> GuardMappedReads(std::string_view what, const std::function<Result<void>()>& body) {
  InstallGuard();
  sigjmp_buf here;
  sigjmp_buf* const outer = t_guard;
  if (sigsetjmp(here, 1) != 0) {
    t_guard = outer;
    return Fail(
        ErrorCode::kIo,
        fmt::format("{}: the disk no longer has the data that was mapped (truncated file?)", what));
  }
  t_guard = &here;
  Result<void> result = body();
  t_guard = outer;
  return result;
}

Result<std::string> ReadFile(const std::filesystem::path& path, std::size_t max_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return SystemError(path, "open");
  }
  struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } const closer{fd};
  struct stat status {};
  if (fstat(fd, &status) != 0) {
    return SystemError(path, "stat");
  }
  if (S_ISDIR(status.st_mode)) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: is a folder, not a file", path.string()));
  }
  if (S_ISREG(status.st_mode) && static_cast<std::uint64_t>(status.st_size) > max_bytes) {
    return Fail(ErrorCode::kLimitExceeded, fmt::format("{}: {} bytes, more than the limit of {}",
                                                       path.string(), status.st_size, max_bytes));
  }
  std::string text;
  for (;;) {
    const std::size_t used = text.size();
    constexpr std::size_t kPiece = 1 << 20;
    text.resize(used + kPiece);
    const ssize_t got = read(fd, text.data() + used, kPiece);
    if (got < 0 && errno == EINTR) {
      text.resize(used);
      continue;
    }
    if (got < 0) {
      return SystemError(path, "read");
    }
    text.resize(used + static_cast<std::size_t>(got));
    if (got == 0) {
      return text;
    }
    if (text.size() > max_bytes) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("{}: more than the limit of {} bytes", path.string(), max_bytes));
    }
  }
}

}  // namespace nibble
