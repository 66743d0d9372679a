#pragma once

// The instructions that CUDA C++ has no name for. Every wait has a deadline: a kernel that would
// hang traps instead, and the step fails.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

// A build for racecheck of compute-sanitizer.
#ifdef NIBBLE_RACECHECK
constexpr bool kForRacecheck = true;
#else
constexpr bool kForRacecheck = false;
#endif

__device__ __forceinline__ std::uint32_t SmemAddress(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// --- dependent launches (Programmatic Dependent Launch, CUDA programming guide) ---

/// Lets the next kernel of the stream start its prologue.
__device__ __forceinline__ void LaunchDependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
/// Waits until all earlier kernels are done and their writes are visible. Every kernel calls it
/// before it reads or writes anything that another kernel touches.
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- mbarrier ---

// Of a barrier, up to 4 us each: about 8 s. Instrumented code does not sleep between them.
// Of a flag in memory, about 0.7 us each.
constexpr std::uint32_t kBarrierTries = kForRacecheck ? 1U << 28 : 1U << 21;
constexpr std::uint32_t kFlagTries = kForRacecheck ? 1U << 28 : 1U << 22;

__device__ __forceinline__ void BarrierInit(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void BarrierExpect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void BarrierArrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A warp arrives as one: __syncwarp puts what all its lanes did before the arrival of lane 0. The
// racecheck of compute-sanitizer credits only threads that arrive themselves, so in a build for it
// every lane does. A barrier for n warps is initialized with n * kWarpArrivals.
constexpr int kWarpArrivals = kForRacecheck ? 32 : 1;
__device__ __forceinline__ bool ArrivesForWarp(int lane) { return kWarpArrivals > 1 || lane == 0; }
__device__ __forceinline__ void WarpArrive(std::uint32_t barrier, int lane) {
  __syncwarp();
  if (ArrivesForWarp(lane)) {
    BarrierArrive(barrier);
  }
}
/// Straight through if the phase is over: a branch taken costs as much as ten instructions.
__device__ __forceinline__ void BarrierWait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done, late;\n"
      ".reg .u32 tries;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\n"
      "mov.u32 tries, 0;\n"
      "TRY:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "add.u32 tries, tries, 1;\n"
      "setp.gt.u32 late, tries, %2;\n"
      "@late trap;\n"
      "@!done bra TRY;\n"
      "DONE:\n"
      "}" ::"r"(barrier),
      "r"(parity), "n"(kBarrierTries)
      : "memory");
}

// --- words in memory that another block changes ---

/// Reads the word at `flag`, as an acquire for the whole card, until done(word).
template <typename Done>
__device__ __forceinline__ void WaitForFlag(const void* flag, Done done) {
  std::uint32_t word = 0;
  std::uint32_t tries = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(flag) : "memory");
    asm volatile(
        "{\n"
        ".reg .pred late;\n"
        "setp.gt.u32 late, %0, %1;\n"
        "@late trap;\n"
        "}" ::"r"(tries),
        "n"(kFlagTries));
    ++tries;
  } while (!done(word));
}

// --- copies by the copy engine ---

__device__ __forceinline__ std::uint64_t EvictFirst() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Source, destination and size in multiples of 16 bytes.
__device__ __forceinline__ void BulkCopy(std::uint32_t smem, const void* global,
                                         std::uint32_t bytes, std::uint32_t barrier,
                                         std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], "
      "%2, [%3], %4;" ::"r"(smem),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
/// The same for data that others will read, too.
__device__ __forceinline__ void BulkCopyShared(std::uint32_t smem, const void* global,
                                               std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(smem),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Between accesses of threads to memory, of this one or others, and those of the copy engine.
__device__ __forceinline__ void FenceForCopies() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

__device__ __forceinline__ void PrefetchL1(const void* global) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(global));
}
/// 16 bytes into shared memory, asynchronously: the first `bytes` of them from `global`, then
/// zeros.
__device__ __forceinline__ void CopyChunk(std::uint32_t smem, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem), "l"(global), "r"(bytes)
               : "memory");
}
/// The same for 4 bytes.
__device__ __forceinline__ void CopyWord(std::uint32_t smem, const void* global, int bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem), "l"(global), "r"(bytes)
               : "memory");
}
/// Until this thread's chunks have arrived; or those before the last CommitChunks but one.
__device__ __forceinline__ void WaitForChunks() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ __forceinline__ void CommitChunks() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ __forceinline__ void WaitForFirstChunks() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}

// --- registers: moves them between the warpgroups of a block (sm_90a; elsewhere nothing) ---

template <int kCount>
__device__ __forceinline__ void TakeRegisters() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void GiveRegisters() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

// --- matrix products ---

/// c += a b for a tile of 16 x 16 (a) and 16 x 8 (b), fp16 in, fp32 sums.
__device__ __forceinline__ void Mma16816(float (&c)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four matrices of 8 rows of 16 bytes; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void LoadMatrices(std::uint32_t& r0, std::uint32_t& r1,
                                             std::uint32_t& r2, std::uint32_t& r3,
                                             std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(address));
}
__device__ __forceinline__ void LoadMatrices(std::uint32_t (&r)[4], std::uint32_t address) {
  LoadMatrices(r[0], r[1], r[2], r[3], address);
}
/// Two of them: lanes 0 to 15.
__device__ __forceinline__ void LoadMatrices(std::uint32_t (&r)[2], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address));
}
__device__ __forceinline__ void LoadMatricesTransposed(std::uint32_t (&r)[2],
                                                       std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address));
}
__device__ __forceinline__ void LoadMatricesTransposed(std::uint32_t (&r)[4],
                                                       std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ std::uint32_t LoadShared32(std::uint32_t address) {
  std::uint32_t r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}

// --- bits ---

/// (a & b) | c
__device__ __forceinline__ std::uint32_t AndOr(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
__device__ __forceinline__ half2 AsHalf2(std::uint32_t bits) {
  return *reinterpret_cast<half2*>(&bits);
}
__device__ __forceinline__ std::uint32_t AsBits(half2 value) {
  return *reinterpret_cast<std::uint32_t*>(&value);
}
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace nibble::cuda
