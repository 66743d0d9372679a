#pragma once

#include <cstddef>
#include <cstdint>

/// Every bound on what may come from outside, in one place. Limits are product code: the fuzz
/// targets use the same ones.
namespace nibble::limits {

inline constexpr std::size_t kKiB = 1024;
inline constexpr std::size_t kMiB = 1024 * kKiB;

// HTTP
inline constexpr std::size_t kRequestLineBytes = 8 * kKiB;
inline constexpr std::size_t kHeaderBytes = 16 * kKiB;
inline constexpr std::size_t kAllHeadersBytes = 32 * kKiB;
inline constexpr int kHeaderCount = 100;
inline constexpr std::size_t kBodyBytes = 16 * kMiB;
inline constexpr int kConnections = 10'000;
inline constexpr int kConnectionsPerAddress = 1'024;
inline constexpr std::size_t kStreamBufferBytes = 256 * kKiB;

// JSON
inline constexpr int kJsonDepth = 64;
inline constexpr std::size_t kJsonMembers = 100'000;       // of a request
inline constexpr std::size_t kJsonStringBytes = 8 * kMiB;  // of a request
inline constexpr std::size_t kConfigJsonBytes = 16 * kMiB;

// Requests
inline constexpr int kMessages = 4'096;
inline constexpr int kStopStrings = 64;
inline constexpr std::size_t kStopStringBytes = 256;
inline constexpr int kLogitBiasEntries = 1'024;
inline constexpr int kChoices = 16;
inline constexpr int kTopLogprobs = 20;
inline constexpr int kPromptsPerRequest = 1'024;

// Templates
inline constexpr std::size_t kTemplateBytes = 256 * kKiB;
inline constexpr std::int64_t kTemplateOperations = 1'000'000;
inline constexpr std::size_t kTemplateOutputBytes = 4 * kMiB;
inline constexpr int kTemplateCallDepth = 64;
inline constexpr std::int64_t kTemplateLoopItems = 100'000;

// Checkpoints
inline constexpr std::uint64_t kSafetensorsHeaderBytes = 32 * kMiB;
inline constexpr std::uint64_t kTensors = 100'000;
inline constexpr std::size_t kTensorNameBytes = 512;
inline constexpr int kSafetensorsRank = 8;
inline constexpr std::uint64_t kGgufKeys = 65'536;
inline constexpr std::uint64_t kGgufArrayBytes = 64 * kMiB;
inline constexpr std::uint64_t kGgufStringBytes = 16 * kMiB;
inline constexpr int kGgufRank = 4;
inline constexpr std::uint64_t kGgufAlignment = 4'096;
inline constexpr std::uint64_t kTokenizerJsonBytes = 128 * kMiB;
inline constexpr std::int64_t kVocabulary = 2'000'000;
inline constexpr std::int64_t kMerges = 4'000'000;
inline constexpr std::size_t kTokenBytes = 1 * kKiB;

// Text of an error that quotes foreign bytes
inline constexpr std::size_t kQuotedBytes = 64;

}  // namespace nibble::limits
