#include "checkpoint/digest.h"

#include <span>

#include "base/sha256.h"
#include "io/file.h"

namespace nibble {

Result<std::string> WeightsDigest(const Checkpoint& checkpoint, const DigestProgress& progress) {
  Sha256 hash;
  std::uint64_t done = 0, total = 0;
  for (const WeightInfo& weight : checkpoint.weights()) {
    total += weight.size_bytes;
  }
  for (const WeightInfo& weight : checkpoint.weights()) {
    hash.Update(std::as_bytes(std::span(weight.name)));
    NIBBLE_TRY(parts, checkpoint.RawParts(weight));
    NIBBLE_TRY_VOID(GuardMappedReads(weight.file, [&]() -> Result<void> {
      for (const auto part : parts) {
        hash.Update(part);
      }
      return {};
    }));
    checkpoint.Release(weight);
    done += weight.size_bytes;
    if (progress && !progress(done, total)) {
      return Fail(ErrorCode::kCancelled, "interrupted");
    }
  }
  return hash.Hex();
}

}  // namespace nibble
