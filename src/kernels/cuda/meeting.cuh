#pragma once

// Where all blocks of a kernel wait for each other.

#include "kernels/cuda/linear_kernel.h"
#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

/// All blocks of the kernel meet: what any wrote before it arrived, all see once they have waited.
/// They are all on the card: the next kernel begins when each has let it. The top bit turns when
/// the last one comes, the others are zero then.
class Meeting {
 public:
  __device__ __forceinline__ explicit Meeting(std::byte* shared)
      : place_(shared + kSharedMeetingAt) {}
  /// By one thread, behind a barrier of the block.
  __device__ __forceinline__ void Arrive() {
    const std::uint32_t count = blockIdx.x == 0 ? 0x80000000U - (gridDim.x - 1) : 1;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;"
                 : "=r"(before_)
                 : "l"(place_), "r"(count)
                 : "memory");
  }
  /// By that thread, before a barrier of the block.
  __device__ __forceinline__ void Wait() const {
    WaitForFlag(place_, [&](std::uint32_t now) { return ((now ^ before_) & 0x80000000U) != 0; });
  }

 private:
  std::byte* place_;
  std::uint32_t before_ = 0;
};

}  // namespace nibble::cuda
