#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "base/result.h"

namespace nibble {

/// Memory in a file that has no name: the kernel keeps of it what there is room for and the disk
/// the rest, and nothing of it stays behind, however the process ends. Move-only.
class ScratchMemory {
 public:
  ScratchMemory() = default;
  /// `bytes` zeros in a file in `folder`, all of it reserved on the disk at once, so that no write
  /// to the memory can fail later. Errors: kIo naming the folder, the bytes and what to do.
  static Result<ScratchMemory> Create(const std::filesystem::path& folder, std::size_t bytes);
  ScratchMemory(ScratchMemory&& other) noexcept;
  ScratchMemory& operator=(ScratchMemory&& other) noexcept;
  ~ScratchMemory();

  std::span<std::byte> bytes() const { return bytes_; }
  /// Takes a range out of this process, the pages that lie in it whole; it comes back with its
  /// content when it is touched.
  void Release(std::size_t offset, std::size_t count) const;

 private:
  std::span<std::byte> bytes_;
};

}  // namespace nibble
