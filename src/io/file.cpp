#include "io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <map>
#include <mutex>
#include <system_error>

#include "base/text.h"

namespace nibble {
namespace {

// The open mappings by their first address. The handler below may take the mutex: SIGBUS comes from
// reading a mapped file, and nobody does that while holding it.
struct Mappings {
  struct Mapping {
    std::uintptr_t end = 0;  // of its last page
    bool lost = false;
  };
  std::mutex mutex;
  std::map<std::uintptr_t, Mapping> by_begin;
  std::atomic<int> num_lost{0};
};

Mappings& AllMappings() {
  static auto& mappings = *new Mappings;  // never destroyed: a static may own a file
  return mappings;
}

thread_local int t_num_guards = 0;  // of this thread, one within the other
struct sigaction g_previous;

std::uintptr_t PageSize() { return static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE)); }

std::uintptr_t Address(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

void Register(const std::byte* data, std::size_t size) {
  const std::uintptr_t page = PageSize();
  Mappings& all = AllMappings();
  const std::lock_guard lock(all.mutex);
  all.by_begin[Address(data)].end = (Address(data) + size + page - 1) / page * page;
}

void Unregister(const std::byte* data) {
  Mappings& all = AllMappings();
  const std::lock_guard lock(all.mutex);
  const auto found = all.by_begin.find(Address(data));
  all.num_lost -= found->second.lost ? 1 : 0;
  all.by_begin.erase(found);
}

// The rest of the mapping, from the page that is gone, reads as zeros from now on.
bool ReplaceLostPages(void* address) {
  Mappings& all = AllMappings();
  const std::lock_guard lock(all.mutex);
  auto found = all.by_begin.upper_bound(Address(address));
  if (found == all.by_begin.begin() || Address(address) >= (--found)->second.end) {
    return false;
  }
  Mappings::Mapping& mapping = found->second;
  // Before the zeros appear: whoever reads them finds the mapping lost afterwards.
  all.num_lost += mapping.lost ? 0 : 1;
  mapping.lost = true;
  std::byte* const begin = static_cast<std::byte*>(address) - Address(address) % PageSize();
  return mmap(begin, mapping.end - Address(begin), PROT_READ,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

void OnBus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const bool from_kernel = info->si_code > 0;
  if (t_num_guards > 0 && from_kernel && ReplaceLostPages(info->si_addr)) {
    errno = saved_errno;
    return;
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
    action.sa_flags = SA_SIGINFO;
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
    Register(file->data_, file->size_);
  }
  return std::shared_ptr<const MappedFile>(file);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    Unregister(data_);
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
  const std::uintptr_t page = PageSize();
  const std::size_t before =
      (page - Address(range.data()) % page) % page;  // of a page not ours alone
  const std::size_t after = Address(range.data() + range.size()) % page;
  if (range.size() > before + after) {
    madvise(const_cast<std::byte*>(range.data()) + before, range.size() - before - after,
            MADV_DONTNEED);
  }
}

Result<void> GuardMappedReads(std::string_view what, const std::function<Result<void>()>& body) {
  InstallGuard();
  struct Scope {
    Scope() { ++t_num_guards; }
    ~Scope() { --t_num_guards; }
  };
  Result<void> result = [&] {
    const Scope scope;
    return body();
  }();
  // Lost by this thread, or earlier or elsewhere and read as zeros here.
  if (AllMappings().num_lost > 0) {
    return Fail(
        ErrorCode::kIo,
        fmt::format("{}: the disk no longer has the data that was mapped (truncated file?)", what));
  }
  return result;
}

Result<std::string_view> Utf8Text(std::string_view bytes, const std::filesystem::path& path) {
  constexpr std::string_view kMark = "\xEF\xBB\xBF";
  if (bytes.starts_with(kMark)) {
    bytes.remove_prefix(kMark.size());
  }
  const std::size_t good = std::min(Utf8Bytes(bytes), bytes.find('\0'));
  if (good >= bytes.size()) {
    return bytes;
  }
  const auto before = bytes.substr(0, good);
  return Fail(ErrorCode::kInvalidArgument,
              fmt::format("{}, line {}: no UTF-8 text (byte \\x{:02x}): convert the file, as by "
                          "iconv -f LATIN1 -t UTF-8, or give another one",
                          path.string(), 1 + std::ranges::count(before, '\n'),
                          static_cast<unsigned char>(bytes[good])));
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
  // A byte beyond the size that it says: where that is right, nothing grows, and a short file does
  // not hold a long one's memory.
  constexpr std::size_t kPiece = 1 << 20;
  std::string text(S_ISREG(status.st_mode) ? static_cast<std::size_t>(status.st_size) + 1 : kPiece,
                   '\0');
  for (std::size_t used = 0;;) {
    if (used == text.size()) {
      text.resize(used + kPiece);
    }
    const ssize_t got = read(fd, text.data() + used, text.size() - used);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return SystemError(path, "read");
    }
    if (got == 0) {
      text.resize(used);
      return text;
    }
    used += static_cast<std::size_t>(got);
    if (used > max_bytes) {
      return Fail(ErrorCode::kLimitExceeded,
                  fmt::format("{}: more than the limit of {} bytes", path.string(), max_bytes));
    }
  }
}

Result<void> ReplaceFile(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::path partial = path;
  partial += ".partial";
  const int fd = open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    return SystemError(partial, "create");
  }
  bool written = true;
  while (written && !text.empty()) {
    const ssize_t count = write(fd, text.data(), text.size());
    written = count > 0 || (count < 0 && errno == EINTR);
    text.remove_prefix(count > 0 ? static_cast<std::size_t>(count) : 0);
  }
  written = written && fsync(fd) == 0;
  Result<void> result;
  if (!written) {
    result = SystemError(partial, "write");
  }
  close(fd);
  if (written && rename(partial.c_str(), path.c_str()) != 0) {
    result = SystemError(path, "replace");
  }
  if (!result) {
    unlink(partial.c_str());
  }
  return result;
}

}  // namespace nibble
