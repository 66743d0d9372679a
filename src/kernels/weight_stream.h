#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "device/device.h"

namespace nibble {

// Weights that stay in host memory and come to the device part by part, every step anew: models
// larger than a card (docs/cpu_offload.md). A part is what a step uses in one go: the matrices of a
// decoder block.

/// Places on the device that hold one part each: while one is multiplied, the next is filled.
constexpr int kWeightSlots = 2;
/// A part always comes to the same slot, so that kernels find it at a fixed address.
constexpr int WeightSlotOf(int part) { return part % kWeightSlots; }

struct StreamedWeights {
  std::vector<std::span<const std::byte>> parts;  // memory of AllocateHost, in the order of use
  std::byte* slots = nullptr;                     // [kWeightSlots][slot_bytes], on the device
  std::size_t slot_bytes = 0;                     // at least the largest part
};

/// Whether weights may stay in host memory. On a CPU they all do.
bool CanStreamWeights(const Device& device);

/// From now on a product of weights that have a part (PackedWeight::part) waits for its copy. Call
/// it after PrepareSteps and before steps are recorded; the parts must hold their weights when the
/// first step is launched, and outlive the last one. Errors: kUnavailable.
Result<void> StreamWeights(Device& device, const StreamedWeights& weights);

/// What happens in the two queues of a device: that of the kernels and that of the copies.
class SlotQueues {
 public:
  virtual ~SlotQueues() = default;
  /// Kernels: marks the slot as read by all that was launched so far.
  virtual void MarkRead(int slot) = 0;
  /// Copies: waits for the slot's last MarkRead, if there was one; copies the part to the slot;
  /// marks the slot as filled.
  virtual void Fill(int slot, int part) = 0;
  /// Kernels: what is launched from now on begins when the slot's last Fill is done.
  virtual void AwaitFilled(int slot) = 0;
};

/// Decides what is copied when: plain bookkeeping of what each slot holds once the queues have run,
/// which a test can follow without a device. Parts may be used in any order; copies are ahead of
/// the kernels if the order is 0, 1, ... and from the last part to the first again.
class SlotSchedule {
 public:
  explicit SlotSchedule(int num_parts, int num_slots = kWeightSlots);
  /// Kernels launched so far are done with part `from`; those launched next read part `to`.
  /// -1: none. Between two parts the kernels may read other weights as they like.
  void Switch(int from, int to, SlotQueues& queues);
  /// Whether every step copies this part: a part that is alone in its slot stays there.
  bool IsCopiedEachStep(int part) const { return NextInSlot(part) != part; }

 private:
  int NextInSlot(int part) const;
  void Hold(int part, SlotQueues& queues);
  int num_parts_;
  std::vector<int> held_;  // by slot: the part that it holds, or was told to hold; -1: none yet
};

}  // namespace nibble
