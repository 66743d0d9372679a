#include "io/atomic_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <map>
#include <system_error>
#include <utility>

#include "base/limits.h"
#include "base/sha256.h"
#include "base/text.h"
#include "io/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr double kSpareSpace = 1.05;
constexpr std::size_t kJournalBytes = 64 * limits::kMiB;
constexpr mode_t kFileMode = 0666;  // less the umask
constexpr mode_t kFolderMode = 0777;

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) {
      close(fd_);
    }
  }
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }
  int Close() { return close(std::exchange(fd_, -1)); }

 private:
  int fd_ = -1;
};

tl::unexpected<Error> SystemError(const fs::path& path, const char* what) {
  const int error = errno;
  const bool can_go_on =
      error == ENOSPC || error == EDQUOT || error == EFBIG || error == EIO;  // once it is mended
  const char* advice =
      can_go_on ? "; what is finished is kept: mend that and run the same command again" : "";
  return Fail(ErrorCode::kIo, fmt::format("{}: cannot {}: {}{}", path.string(), what,
                                          std::generic_category().message(error), advice));
}

Result<void> WriteAll(int fd, std::span<const std::byte> bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return SystemError(path, "write");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

Result<void> SyncFolder(const fs::path& folder) {
  const Descriptor fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok() || fsync(fd.get()) != 0) {
    return SystemError(folder, "fsync the folder");
  }
  return {};
}

Result<void> CheckName(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
    return Fail(ErrorCode::kInvalidArgument, fmt::format("not a file name: {}", Quote(name)));
  }
  return {};
}

bool Exists(const fs::path& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0;
}

struct DoneFile {
  std::uint64_t size = 0;
  std::string sha256;
  json::Value facts;
  enum class State { kUnchecked, kIntact, kDamaged } state = State::kIntact;
};

class FolderWriter final : public AtomicWriter {
 public:
  FolderWriter(fs::path target, fs::path partial, fs::path journal)
      : target_(std::move(target)), partial_(std::move(partial)), journal_(std::move(journal)) {}

  Result<void> Start(const json::Value& fingerprint, std::uint64_t expected_bytes);
  bool IsDone(std::string_view file_name) const override;
  std::optional<json::Value> DoneFacts(std::string_view file_name) const override;
  Result<std::unique_ptr<File>> OpenFile(std::string_view file_name) override;
  Result<void> Remove(std::string_view file_name) override;
  const fs::path& partial_path() const override { return partial_; }
  Result<void> Commit() override;
  Result<void> CommitFile(std::string_view file_name) override;
  void Discard() override;

  Result<void> Finished(const std::string& name, DoneFile file);

 private:
  Result<void> TakeFolder();
  Result<void> RemoveUnfinished();
  Result<void> CheckAllDone() const;
  Result<void> Rename(const fs::path& from) const;
  Result<void> ReadJournal(const json::Value& fingerprint);
  Result<void> CheckSpace(std::uint64_t expected_bytes) const;
  Result<void> Append(const json::Object& line);

  fs::path target_, partial_, journal_;
  Descriptor folder_;  // holds the owner's lock
  Descriptor journal_fd_;
  bool fresh_ = false;
  mutable std::map<std::string, DoneFile, std::less<>> done_;
};

// Writes, hashes and at the end makes durable. After a failure every call fails: an fsync that
// failed once may report success the second time, with the data gone.
class FolderFile final : public AtomicWriter::File {
 public:
  FolderFile(FolderWriter& writer, std::string name, fs::path path, Descriptor fd)
      : writer_(writer), name_(std::move(name)), path_(std::move(path)), fd_(std::move(fd)) {}

  Result<void> Write(std::span<const std::byte> bytes) override {
    NIBBLE_TRY_VOID(CheckOpen());
    if (auto written = WriteAll(fd_.get(), bytes, path_); !written) {
      fd_ = Descriptor();
      return written;
    }
    hash_.Update(bytes);
    size_ += bytes.size();
    return {};
  }
  Result<void> Finish(const json::Value& facts) override {
    NIBBLE_TRY_VOID(CheckOpen());
    if (fsync(fd_.get()) != 0) {
      auto failed = SystemError(path_, "fsync");
      fd_ = Descriptor();
      return failed;
    }
    if (fd_.Close() != 0) {
      return SystemError(path_, "close");
    }
    return writer_.Finished(name_, {.size = size_, .sha256 = hash_.Hex(), .facts = facts});
  }

 private:
  Result<void> CheckOpen() const {
    return fd_.ok() ? Result<void>{}
                    : Fail(ErrorCode::kIo, fmt::format("{}: an earlier write failed, or the file "
                                                       "is finished",
                                                       path_.string()));
  }
  FolderWriter& writer_;
  std::string name_;
  fs::path path_;
  Descriptor fd_;
  Sha256 hash_;
  std::uint64_t size_ = 0;
};

Result<void> FolderWriter::Start(const json::Value& fingerprint, std::uint64_t expected_bytes) {
  if (Exists(target_)) {
    return Fail(
        ErrorCode::kInvalidArgument,
        fmt::format("{} exists already; remove it or choose another name", target_.string()));
  }
  NIBBLE_TRY_VOID(TakeFolder());
  const auto ready = [&]() -> Result<void> {
    NIBBLE_TRY_VOID(ReadJournal(fingerprint));
    NIBBLE_TRY_VOID(RemoveUnfinished());
    return CheckSpace(expected_bytes);
  }();
  if (!ready && fresh_) {  // nothing was done: nothing is left
    unlink(journal_.c_str());
    rmdir(partial_.c_str());
  }
  return ready;
}

// Makes or finds the partial folder and takes its lock; the kernel drops the lock with the process.
Result<void> FolderWriter::TakeFolder() {
  std::error_code error;
  fs::create_directories(partial_.parent_path(), error);
  if (error) {
    return Fail(ErrorCode::kIo, fmt::format("{}: cannot create: {}",
                                            partial_.parent_path().string(), error.message()));
  }
  fresh_ = mkdir(partial_.c_str(), kFolderMode) == 0;
  if (!fresh_ && errno != EEXIST) {
    return SystemError(partial_, "create");
  }
  folder_ = Descriptor(open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder_.ok()) {
    return SystemError(partial_, "open");
  }
  struct stat held {
  }, named{};
  // The owner may have renamed the folder between our open and our lock.
  if (flock(folder_.get(), LOCK_EX | LOCK_NB) != 0 || fstat(folder_.get(), &held) != 0 ||
      lstat(partial_.c_str(), &named) != 0 || held.st_ino != named.st_ino) {
    return Fail(ErrorCode::kUnavailable,
                fmt::format("{}: another process is writing this folder; wait for it to end",
                            partial_.string()));
  }
  return {};
}

Result<void> FolderWriter::ReadJournal(const json::Value& fingerprint) {
  const std::string wanted = json::Dump(fingerprint);
  std::string text;
  if (!fresh_ && Exists(journal_)) {
    NIBBLE_TRY(read, ReadFile(journal_, kJournalBytes));
    text = std::move(read);
  }
  std::size_t valid = 0;  // bytes of whole, understood lines; a torn last line is cut off
  bool first = true;
  for (;;) {
    const std::size_t end = text.find('\n', valid);
    if (end == std::string::npos) {
      break;
    }
    const auto line = json::Parse(std::string_view(text).substr(valid, end - valid));
    if (!line) {
      break;
    }
    if (first) {
      const json::Value* found = line->Find("fingerprint");
      if (found == nullptr || json::Dump(*found) != wanted) {
        return Fail(ErrorCode::kInvalidArgument,
                    fmt::format("{} was left by a run with another source, recipe or version; "
                                "remove it to start anew: rm -r '{}'",
                                partial_.string(), partial_.string()));
      }
      first = false;
    } else {
      const json::Value* name = line->Find("file");
      const json::Value* size = line->Find("size");
      const json::Value* sha256 = line->Find("sha256");
      const json::Value* facts = line->Find("facts");
      if (name == nullptr || name->AsString() == nullptr || size == nullptr || !size->AsUint() ||
          sha256 == nullptr || sha256->AsString() == nullptr || facts == nullptr) {
        break;
      }
      done_[*name->AsString()] = {.size = *size->AsUint(),
                                  .sha256 = *sha256->AsString(),
                                  .facts = *facts,
                                  .state = DoneFile::State::kUnchecked};
    }
    valid = end + 1;
  }
  journal_fd_ = Descriptor(
      open(journal_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, kFileMode));
  if (!journal_fd_.ok() || ftruncate(journal_fd_.get(), static_cast<off_t>(valid)) != 0) {
    return SystemError(journal_, "open the journal");
  }
  if (first) {
    done_.clear();
    json::Object line;
    line.Set("fingerprint", fingerprint);
    NIBBLE_TRY_VOID(Append(line));
  }
  return SyncFolder(partial_.parent_path());
}

// What an interruption left half written: the folder may be read before that is written again.
Result<void> FolderWriter::RemoveUnfinished() {
  std::vector<std::string> unfinished;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(partial_, error)) {
    if (std::string name = entry.path().filename().string(); !done_.contains(name)) {
      unfinished.push_back(std::move(name));
    }
  }
  if (error) {
    return Fail(ErrorCode::kIo,
                fmt::format("{}: cannot list: {}", partial_.string(), error.message()));
  }
  for (const std::string& name : unfinished) {
    NIBBLE_TRY_VOID(Remove(name));
  }
  return {};
}

Result<void> FolderWriter::CheckSpace(std::uint64_t expected_bytes) const {
  std::uint64_t have = 0;
  for (const auto& [name, file] : done_) {
    have += file.size;
  }
  struct statvfs volume {};
  if (fstatvfs(folder_.get(), &volume) != 0) {
    return SystemError(partial_, "read the free space of");
  }
  const double needed =
      kSpareSpace * static_cast<double>(expected_bytes > have ? expected_bytes - have : 0);
  const double free = static_cast<double>(volume.f_bavail) * static_cast<double>(volume.f_frsize);
  if (free < needed) {
    return Fail(ErrorCode::kIo,
                fmt::format("{}: {} are needed, {} are free: make room, or choose another place",
                            partial_.parent_path().string(), HumanBytes(needed), HumanBytes(free)));
  }
  return {};
}

Result<void> FolderWriter::Append(const json::Object& line) {
  const std::string text = json::Dump(line) + "\n";
  NIBBLE_TRY_VOID(WriteAll(journal_fd_.get(), std::as_bytes(std::span(text)), journal_));
  if (fsync(journal_fd_.get()) != 0) {
    return SystemError(journal_, "fsync");
  }
  return {};
}

bool FolderWriter::IsDone(std::string_view file_name) const {
  const auto found = done_.find(file_name);
  if (found == done_.end()) {
    return false;
  }
  DoneFile& file = found->second;
  if (file.state == DoneFile::State::kUnchecked) {
    file.state = DoneFile::State::kDamaged;
    const auto mapped = MappedFile::Open(partial_ / found->first);
    if (mapped && (*mapped)->bytes().size() == file.size) {
      const auto checked = GuardMappedReads(found->first, [&]() -> Result<void> {
        if (Sha256Hex((*mapped)->bytes()) == file.sha256) {
          file.state = DoneFile::State::kIntact;
        }
        return {};
      });
      if (!checked) {
        file.state = DoneFile::State::kDamaged;
      }
    }
  }
  return file.state == DoneFile::State::kIntact;
}

std::optional<json::Value> FolderWriter::DoneFacts(std::string_view file_name) const {
  return IsDone(file_name) ? std::optional(done_.find(file_name)->second.facts) : std::nullopt;
}

Result<std::unique_ptr<AtomicWriter::File>> FolderWriter::OpenFile(std::string_view file_name) {
  const std::string name(file_name);
  NIBBLE_TRY_VOID(CheckName(name));
  done_.erase(name);
  const fs::path path = partial_ / name;
  Descriptor fd(openat(folder_.get(), name.c_str(),
                       O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, kFileMode));
  if (!fd.ok()) {
    return SystemError(path, "create");
  }
  return std::make_unique<FolderFile>(*this, name, path, std::move(fd));
}

Result<void> FolderWriter::Finished(const std::string& name, DoneFile file) {
  // The name of the file must survive a crash too, before the journal promises it.
  if (fsync(folder_.get()) != 0) {
    return SystemError(partial_, "fsync the folder");
  }
  json::Object line;
  line.Set("file", name);
  line.Set("size", file.size);
  line.Set("sha256", file.sha256);
  line.Set("facts", file.facts);
  NIBBLE_TRY_VOID(Append(line));
  done_[name] = std::move(file);
  return {};
}

Result<void> FolderWriter::Remove(std::string_view file_name) {
  const std::string name(file_name);
  NIBBLE_TRY_VOID(CheckName(name));
  if (unlinkat(folder_.get(), name.c_str(), 0) != 0 && errno != ENOENT) {
    return SystemError(partial_ / name, "remove");
  }
  done_.erase(name);
  return {};
}

Result<void> FolderWriter::CheckAllDone() const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(partial_, error)) {
    if (!IsDone(entry.path().filename().string())) {
      return Fail(ErrorCode::kIo,
                  fmt::format("{}: is not finished; write it or remove it before the folder "
                              "can appear as {}",
                              entry.path().string(), target_.string()));
    }
  }
  if (error) {
    return Fail(ErrorCode::kIo,
                fmt::format("{}: cannot list: {}", partial_.string(), error.message()));
  }
  if (fsync(folder_.get()) != 0) {
    return SystemError(partial_, "fsync the folder");
  }
  return {};
}

// To the target, replacing nothing.
Result<void> FolderWriter::Rename(const fs::path& from) const {
  int renamed = renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, target_.c_str(), RENAME_NOREPLACE);
  if (renamed != 0 && (errno == EINVAL || errno == ENOSYS) && !Exists(target_)) {
    renamed = std::rename(from.c_str(), target_.c_str());  // a file system without the flag
  }
  if (renamed != 0) {
    if (errno == EEXIST || errno == ENOTEMPTY) {
      return Fail(ErrorCode::kInvalidArgument,
                  fmt::format("{} appeared meanwhile; the result stays in {}", target_.string(),
                              partial_.string()));
    }
    return SystemError(target_, "rename the finished result to");
  }
  return SyncFolder(target_.parent_path());
}

Result<void> FolderWriter::Commit() {
  NIBBLE_TRY_VOID(CheckAllDone());
  NIBBLE_TRY_VOID(Rename(partial_));
  unlink(journal_.c_str());  // a stale one would be harmless
  folder_ = Descriptor();
  return {};
}

Result<void> FolderWriter::CommitFile(std::string_view file_name) {
  NIBBLE_TRY_VOID(CheckAllDone());
  NIBBLE_TRY_VOID(Rename(partial_ / file_name));
  unlink(journal_.c_str());
  folder_ = Descriptor();
  std::error_code ignored;  // an empty folder that stays would be in nobody's way
  fs::remove(partial_, ignored);
  return {};
}

void FolderWriter::Discard() {
  std::error_code ignored;  // what cannot be removed is found by the next run
  fs::remove_all(partial_, ignored);
  unlink(journal_.c_str());
  folder_ = Descriptor();
}

}  // namespace

Result<std::unique_ptr<AtomicWriter>> AtomicWriter::Create(const fs::path& target,
                                                           const json::Value& fingerprint,
                                                           std::uint64_t expected_bytes) {
  fs::path full = fs::absolute(target).lexically_normal();
  if (full.filename().empty()) {  // "out/"
    full = full.parent_path();
  }
  if (full.filename().empty()) {
    return Fail(ErrorCode::kInvalidArgument,
                fmt::format("{}: not a folder that can be created", target.string()));
  }
  const std::string name = "." + full.filename().string() + ".partial";
  auto writer = std::make_unique<FolderWriter>(full, full.parent_path() / name,
                                               full.parent_path() / (name + ".journal"));
  NIBBLE_TRY_VOID(writer->Start(fingerprint, expected_bytes));
  return writer;
}

Result<void> AtomicWriter::WriteWhole(std::string_view file_name, std::string_view text) {
  NIBBLE_TRY(file, OpenFile(file_name));
  NIBBLE_TRY_VOID(file->Write(std::as_bytes(std::span(text))));
  return file->Finish();
}

}  // namespace nibble
