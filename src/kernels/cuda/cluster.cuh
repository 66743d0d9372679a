#pragma once

// Blocks that work together: tensor copies, barriers and shared memory across a cluster (sm_90 and
// newer).

#include <cuda.h>

#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

/// Has a tensor map ready before the first copy needs it.
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Copies the box at (column, row) of a matrix; rows beyond it arrive as zeros.
__device__ __forceinline__ void TensorCopy(std::uint32_t smem, const CUtensorMap* map, int column,
                                           int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(smem),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
/// The same to both blocks of a cluster of two, at the same place, onto each one's own barrier.
__device__ __forceinline__ void TensorCopyToBoth(std::uint32_t smem, const CUtensorMap* map,
                                                 int column, int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<std::uint16_t>(3))
      : "memory");
}
/// Arrives at a barrier of block `rank` of the cluster, given its address here.
__device__ __forceinline__ void ArriveAt(std::uint32_t barrier, std::uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
/// A warpgroup's arrivals at a barrier of both blocks of a cluster of two, once a wait for its
/// wgmma has brought it together: a thread each, or for racecheck all (kWarpArrivals).
constexpr int kWarpgroupArrivals = kWarpArrivals == 1 ? 1 : 4 * kWarpArrivals;
class ArrivalAtBoth {
 public:
  /// `barriers`: the first, here.
  __device__ __forceinline__ explicit ArrivalAtBoth(std::uint32_t barriers)
      : arrives_(kWarpgroupArrivals > 1 || threadIdx.x % 128 < 2) {
#pragma unroll
    for (std::uint32_t i = 0; i < kCount; ++i) {
      asm("mapa.shared::cluster.u32 %0, %1, %2;"
          : "=r"(remote_[i])
          : "r"(barriers), "r"((threadIdx.x + i) % 2));
    }
  }
  __device__ __forceinline__ void Arrive(int index) const {
    if (arrives_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_[i] + 8 * index)
                     : "memory");
      }
    }
  }

 private:
  static constexpr int kCount = kWarpgroupArrivals > 1 ? 2 : 1;
  bool arrives_;
  std::uint32_t remote_[kCount];
};
/// Writes `value` to block `rank` of the cluster, at the place of `to` here; its barrier, given by
/// its address here, counts the 16 bytes.
__device__ __forceinline__ void SendTo(std::uint32_t rank, float4* to, float4 value,
                                       std::uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .b32 address, remote;\n"
      "mapa.shared::cluster.u32 address, %0, %2;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [address], {%3, %4, %5, "
      "%6}, [remote];\n"
      "}" ::"r"(SmemAddress(to)),
      "r"(barrier), "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}
/// Relaxed: it orders no memory but barriers whose initialization was fenced. With .release it
/// would wait until the outputs of a kernel are in the L2 cache.
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace nibble::cuda
