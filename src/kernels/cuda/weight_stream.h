#pragma once

#include <array>
#include <memory>

#include "base/result.h"
#include "device/cuda_device.h"
#include "kernels/weight_stream.h"

struct CUevent_st;

namespace nibble::cuda {

/// The queues of a card for SlotSchedule: kernels run on the device's stream, copies on its copy
/// stream, an event each way a slot.
class WeightStream final : private SlotQueues {
 public:
  /// Errors: kUnavailable.
  static Result<std::unique_ptr<WeightStream>> Create(CudaDevice& device,
                                                      const StreamedWeights& weights);
  ~WeightStream() override;
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  /// Comes before the launch of a kernel that reads weights: of this part, or of none (-1).
  /// Kernels start to copy weights before the kernel in front of them is done, so the first kernel
  /// of a part is no dependent of anything earlier.
  void Use(int part);

 private:
  WeightStream(CudaDevice& device, const StreamedWeights& weights);
  void MarkRead(int slot) override;
  void Fill(int slot, int part) override;
  void AwaitFilled(int slot) override;

  CudaDevice& device_;
  const StreamedWeights weights_;
  SlotSchedule schedule_;
  int current_ = -1;  // the part of the kernel launched, or recorded, last
  std::array<CUevent_st*, kWeightSlots> read_{};
  std::array<CUevent_st*, kWeightSlots> filled_{};
};

}  // namespace nibble::cuda
