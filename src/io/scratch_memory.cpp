#include "io/scratch_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <system_error>
#include <utility>

#include "base/text.h"

namespace nibble {
namespace {

// A file without a name; where the file system cannot make one, its name is taken away at once.
int OpenNameless(const std::filesystem::path& folder) {
  const int fd = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0) {
    return fd;
  }
  std::string name = (folder / ".scratch.XXXXXX").string();
  const int named = mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) {
    unlink(name.c_str());
  }
  return named;
}

}  // namespace

Result<ScratchMemory> ScratchMemory::Create(const std::filesystem::path& folder,
                                            std::size_t bytes) {
  const auto failed = [&](int error) {
    return Fail(
        ErrorCode::kIo,
        fmt::format("{}: cannot keep {} there for the time of the run: {}{}", folder.string(),
                    HumanBytes(static_cast<double>(bytes)), std::generic_category().message(error),
                    error == ENOSPC ? "; free disk space, or write to another one" : ""));
  };
  ScratchMemory out;
  if (bytes == 0) {
    return out;
  }
  std::error_code ignored;  // a folder that is not there is told by opening the file
  if (std::filesystem::space(folder, ignored).available < bytes) {
    return failed(ENOSPC);  // before a file system without fallocate fills the disk to find out
  }
  const int fd = OpenNameless(folder);
  if (fd < 0) {
    return failed(errno);
  }
  const int reserved = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  void* const memory =
      reserved == 0 ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int error = reserved != 0 ? reserved : errno;
  close(fd);  // the mapping keeps the file
  if (memory == MAP_FAILED) {
    return failed(error);
  }
  out.bytes_ = {static_cast<std::byte*>(memory), bytes};
  return out;
}

ScratchMemory::ScratchMemory(ScratchMemory&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})) {}

ScratchMemory& ScratchMemory::operator=(ScratchMemory&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

ScratchMemory::~ScratchMemory() {
  if (!bytes_.empty()) {
    munmap(bytes_.data(), bytes_.size());
  }
}

void ScratchMemory::Release(std::size_t offset, std::size_t count) const {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = (offset + page - 1) / page * page;
  const std::size_t end = (offset + count) / page * page;
  if (begin < end) {
    madvise(bytes_.data() + begin, end - begin, MADV_DONTNEED);
  }
}

}  // namespace nibble
