#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "json/value.h"

namespace nibble {

/// Writes one output folder so that it either appears whole under its final name or not at all, and
/// so that an interrupted run can go on (robustness guide section 9). Files are written into a
/// sibling folder
/// ".<name>.partial" with an owner lock and a journal; a file counts as done only once it is
/// checksummed, fsynced and journalled. Commit fsyncs everything, renames without replacing, and
/// fsyncs the parent.
class AtomicWriter {
 public:
  /// fingerprint: whatever identifies the run (source sizes and digests, recipe, seed, version). A
  /// partial folder with the same fingerprint is resumed, without the files that were not finished:
  /// it may be opened as a checkpoint before they are written again. With another one it is refused
  /// (kInvalidArgument, says how to remove it). Errors: kInvalidArgument if `target` exists; kIo if
  /// there is less than expected_bytes * 1.05 free space; kUnavailable if another process owns the
  /// partial folder.
  static Result<std::unique_ptr<AtomicWriter>> Create(const std::filesystem::path& target,
                                                      const json::Value& fingerprint,
                                                      std::uint64_t expected_bytes);
  virtual ~AtomicWriter() = default;

  /// True if an earlier run finished this file and it is still intact (size and SHA-256).
  virtual bool IsDone(std::string_view file_name) const = 0;
  /// Facts journalled with the file by Finish, for resuming.
  virtual std::optional<json::Value> DoneFacts(std::string_view file_name) const = 0;

  /// One file, written front to back.
  class File {
   public:
    virtual ~File() = default;
    virtual Result<void> Write(std::span<const std::byte> bytes) = 0;
    /// fsync, close, append name, size, SHA-256 and `facts` to the journal, fsync the journal.
    virtual Result<void> Finish(const json::Value& facts = {}) = 0;
  };
  virtual Result<std::unique_ptr<File>> OpenFile(std::string_view file_name) = 0;
  Result<void> WriteWhole(std::string_view file_name, std::string_view text);
  /// Takes away a finished file that only served the run itself: Commit moves everything that is
  /// there. A file that is not there is fine.
  virtual Result<void> Remove(std::string_view file_name) = 0;

  /// The folder being written, e.g. to be opened as a checkpoint before Commit.
  virtual const std::filesystem::path& partial_path() const = 0;
  /// Makes the folder appear. After this the object is done.
  virtual Result<void> Commit() = 0;
  /// Removes the partial folder and its journal instead: what a command that can never succeed has
  /// left. After this the object is done.
  virtual void Discard() = 0;
  /// For formats of a single file: makes that file, the only one in the folder, appear under the
  /// target's name instead.
  virtual Result<void> CommitFile(std::string_view file_name) = 0;
};

}  // namespace nibble
