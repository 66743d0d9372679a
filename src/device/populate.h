#pragma once

#include <cstddef>

namespace nibble {

/// Gives a range of anonymous memory its pages, without reading or changing what it holds: others
/// may write to it at the same time. False where the kernel cannot (before Linux 5.14).
bool PopulatePages(std::byte* data, std::size_t bytes);

}  // namespace nibble
