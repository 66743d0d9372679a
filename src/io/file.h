#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

/// A file mapped read-only. Size is taken once from the descriptor. Reading a page that the disk no
/// longer has (truncated behind our back) becomes an Error through GuardMappedReads, not a SIGBUS
/// death.
class MappedFile {
 public:
  static Result<std::shared_ptr<const MappedFile>> Open(const std::filesystem::path& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// kCorruptFile if size or modification time changed since Open.
  Result<void> CheckUnchanged() const;
  /// Drops the pages of a range of this mapping (madvise DONTNEED); they are read again if touched.
  void Release(std::span<const std::byte> range) const;

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::int64_t mtime_ns_ = 0;
  int fd_ = -1;
};

/// Runs `body`, which may read mapped files on the calling thread. A page that the disk no longer
/// has reads as zeros to the end of its file, so body runs to its end and its destructors with it;
/// what it made of them is dropped: the result is kIo naming `what`, here and in every guard until
/// that file is closed.
Result<void> GuardMappedReads(std::string_view what, const std::function<Result<void>()>& body);

/// Reads a whole file. kNotFound, kLimitExceeded (more than max_bytes) or kIo; the message names
/// the path.
Result<std::string> ReadFile(const std::filesystem::path& path, std::size_t max_bytes);

/// The text in the bytes of a file: UTF-8 without a byte order mark. kInvalidArgument for anything
/// else, such as another encoding or a file of numbers; names path and line, and says what helps.
Result<std::string_view> Utf8Text(std::string_view bytes, const std::filesystem::path& path);

/// Makes `text` the content of a file, which is whole at any moment: the old one or the new one.
/// It is written beside it, as PATH.partial. kIo.
Result<void> ReplaceFile(const std::filesystem::path& path, std::string_view text);

}  // namespace nibble
