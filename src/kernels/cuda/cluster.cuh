#pragma once

// Blocks that work together: tensor copies, barriers and shared memory across a cluster (sm_90 and
// newer).

#include <cuda.h>

#include "kernels/cuda/ptx.cuh"

namespace nibble::cuda {

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
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace nibble::cuda
