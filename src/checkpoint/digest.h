#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "checkpoint/checkpoint.h"

namespace nibble {

/// Told after each weight; return false to stop (kCancelled).
using DigestProgress = std::function<bool(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// SHA-256 over names and stored bytes of all weights: what a model is, wherever it lies.
Result<std::string> WeightsDigest(const Checkpoint& checkpoint,
                                  const DigestProgress& progress = {});

}  // namespace nibble
