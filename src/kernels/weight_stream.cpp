#include "kernels/weight_stream.h"

#include "base/check.h"
#include "kernels/cuda/backend.h"

namespace nibble {

bool CanStreamWeights(const Device& device) { return device.kind() == DeviceKind::kCuda; }

Result<void> StreamWeights(Device& device, const StreamedWeights& weights) {
  NIBBLE_CHECK(CanStreamWeights(device), "weights of a CPU lie where it reads them");
  return cuda::StreamWeights(device, weights);
}

SlotSchedule::SlotSchedule(int num_parts, int num_slots)
    : num_parts_(num_parts), held_(static_cast<std::size_t>(num_slots), -1) {}

int SlotSchedule::NextInSlot(int part) const {
  const int num_slots = static_cast<int>(held_.size());
  return part + num_slots < num_parts_ ? part + num_slots : part % num_slots;
}

void SlotSchedule::Hold(int part, SlotQueues& queues) {
  const int slot = part % static_cast<int>(held_.size());
  int& held = held_[static_cast<std::size_t>(slot)];
  if (held != part) {
    held = part;
    queues.Fill(slot, part);
  }
}

void SlotSchedule::Switch(int from, int to, SlotQueues& queues) {
  const int num_slots = static_cast<int>(held_.size());
  NIBBLE_CHECK(from < num_parts_ && to < num_parts_, "a part beyond the last");
  if (from >= 0) {
    queues.MarkRead(from % num_slots);
    Hold(NextInSlot(from), queues);  // under way while other parts are multiplied
  }
  if (to >= 0) {
    Hold(to, queues);  // nothing to do, but for the first step and for an order of one's own
    queues.AwaitFilled(to % num_slots);
  }
}

}  // namespace nibble
