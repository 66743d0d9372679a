#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "device/device.h"
#include "io/scratch_memory.h"
#include "kernels/activation_rows.h"
#include "model/llama.h"

namespace nibble {

/// The linears of a decoder block that multiply the same input, in the order of the forward pass.
enum class LinearGroup : std::uint8_t { kQkv, kOutput, kGateUp, kDown };
inline constexpr LinearGroup kLinearGroups[] = {LinearGroup::kQkv, LinearGroup::kOutput,
                                                LinearGroup::kGateUp, LinearGroup::kDown};
/// "self_attn.q_proj", ...
std::span<const std::string_view> LinearsOf(LinearGroup group);
/// "model.layers.3.self_attn.q_proj.weight"
std::string WeightName(std::int64_t block, std::string_view linear);
/// in_features of the group.
std::int64_t InputWidth(const ModelConfig& config, LinearGroup group);

/// The hidden states of many token windows on their way through one model, a group of linears at a
/// time: all rows reach the input of a group before its weights are asked for. One block of the
/// model is in memory. The arithmetic is that of a ModelRunner on such a device with such
/// activations and a BF16 cache, to the bit.
class BlockWalk {
 public:
  /// Bytes of what is kept of every token: its hidden state and its widest input, fp32 (or, of
  /// the inputs on a card, fp16 at the pitch of fp32).
  static std::uint64_t RowBytes(const ModelConfig& config, std::int64_t num_tokens);
  /// Adds its memory to the ledger of the device: a part of the model, its workspace and, as
  /// "calibration", RowBytes, if rows_folder is empty; else those lie in a file there (CPU only).
  /// tokens: windows of `length`, [num_windows * length]; checkpoint and tokens must outlive the
  /// walk.
  static Result<void> Plan(const Checkpoint& checkpoint, std::int64_t num_tokens,
                           std::int64_t length, Device& device,
                           const std::filesystem::path& rows_folder = {},
                           ActivationMode activations = ActivationMode::kInt16);
  static Result<std::unique_ptr<BlockWalk>> Create(
      const Checkpoint& checkpoint, std::span<const TokenId> tokens, std::int64_t length,
      Device& device, const std::filesystem::path& rows_folder = {},
      ActivationMode activations = ActivationMode::kInt16);

  /// Loads the embedding and starts all rows.
  Result<void> Embed();
  /// Loads the norms and biases of a block; the block before must have been ended.
  Result<void> Begin(std::int64_t block);
  /// Loads the weights of a group from the checkpoint.
  Result<void> Load(LinearGroup group);

  /// Rows are taken in chunks: part of a window each, or on a card several windows.
  std::int64_t num_chunks() const {
    const std::int64_t windows = num_rows() / length_;
    return (windows + windows_of_chunk_ - 1) / windows_of_chunk_ * chunks_of_window_;
  }
  std::int64_t max_chunk_rows() const { return chunk_tokens_; }
  /// The same of a walk to come.
  static std::int64_t MaxChunkRows(const Device& device, std::int64_t length) {
    return LimitsOf(device, length).max_tokens;
  }
  /// Inputs of a group, [num_rows, InputWidth]; valid until the next call, or what it submits.
  using Inputs = ActivationRows;
  /// Takes a chunk to the input of a group. All chunks in order for one group, then the next group
  /// in order, whose predecessors are loaded.
  Inputs Advance(LinearGroup group, std::int64_t chunk);
  /// hidden = output of the block, for one chunk; every group is loaded.
  void End(std::int64_t chunk);

  /// Between blocks: what the next one sees, [num_rows, hidden_size]. On a CPU.
  std::span<float> hidden();
  std::int64_t num_rows() const { return static_cast<std::int64_t>(tokens_.size()); }

 private:
  BlockWalk(const Checkpoint& checkpoint, std::span<const TokenId> tokens, std::int64_t length,
            Device& device)
      : checkpoint_(checkpoint), tokens_(tokens), length_(length), device_(device) {}
  Result<void> LoadPart(const std::function<bool(const PlannedWeight&)>& wanted);
  // A chunk: its rows, whole windows or where they lie in one.
  struct Chunk {
    std::int64_t first_row = 0;
    std::int64_t first_position = 0;
    std::int64_t num_rows = 0;
  };
  Chunk ChunkAt(std::int64_t index) const;
  // Tells the device of a chunk's tokens. Valid until the next call.
  ForwardBatch BeginStep(const Chunk& chunk);
  // Rows on disk: those of the chunk before need no memory any more.
  void Leave();
  static ModelLimits LimitsOf(const Device& device, std::int64_t length);
  static Result<KvCacheSpec> CacheSpec(const Checkpoint& checkpoint, const Device& device);

  const Checkpoint& checkpoint_;
  std::span<const TokenId> tokens_;
  std::int64_t length_;
  Device& device_;
  WeightPlan plan_;  // overlapping
  std::unique_ptr<LlamaModel> model_;
  DeviceBuffer memory_;  // of all rows: hidden states, then widest inputs. Or:
  ScratchMemory file_;
  float* hidden_ = nullptr;  // [num_rows, hidden_size]
  float* inner_ = nullptr;   // [num_rows, a group's width]
  DeviceBuffer input_, kv_buffer_;
  std::optional<Chunk> current_;
  KvCache cache_;
  std::vector<BlockId> block_table_;
  std::vector<AttentionSequence> sequences_;  // of the chunk begun last
  std::int64_t chunk_tokens_ = 0, chunks_of_window_ = 0, windows_of_chunk_ = 0;
  std::int64_t block_ = 0;
};

}  // namespace nibble
