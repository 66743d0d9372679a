#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "eval/perplexity.h"

namespace nibble {

/// One model in both activation modes against its source, and what it says after a prompt.
struct BlockwiseQuality {
  QualityReport int16, int8;
  std::vector<float> prompt_logits_int16, prompt_logits_int8;  // of the prompt's last position
};

/// Return false to stop (kCancelled).
using BlockwiseProgress =
    std::function<bool(std::uint64_t done, std::uint64_t total, const std::string& detail)>;

/// The same numbers, to the bit, as EvaluateText over two whole models with int16 activations for
/// the reference, but block by block: a block of both models is loaded, all windows pass through
/// it, and the next one takes its place. So models that exceed the memory can be measured. Memory:
/// the largest part of each (a table or a block), hidden states of at most the largest weight in
/// fp32 (or one window), a step's workspace twice, and some rows of logits. On a CPU device.
/// Errors: those of EvaluateText; kOutOfMemory before a weight is read.
Result<BlockwiseQuality> EvaluateBlockwise(const Checkpoint& model, const Checkpoint& reference,
                                           Device& device, std::span<const TokenId> tokens,
                                           std::span<const TokenId> prompt,
                                           const WindowOptions& options,
                                           const BlockwiseProgress& progress = {});

/// Bytes that EvaluateBlockwise of these plans, on a device that has planned nothing else. Reads no
/// weight, so the model may be one that is yet to be made.
Result<std::uint64_t> BlockwiseBytes(const Checkpoint& model, const Checkpoint& reference,
                                     Device& device, std::span<const TokenId> tokens,
                                     std::span<const TokenId> prompt, const WindowOptions& options);

/// One model alone, int16 activations: its perplexity, and no distance to anything (KL is 0).
Result<QualityReport> EvaluateAlone(const Checkpoint& model, Device& device,
                                    std::span<const TokenId> tokens, const WindowOptions& options,
                                    const BlockwiseProgress& progress = {});

}  // namespace nibble
