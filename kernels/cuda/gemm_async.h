// Hopper's asynchronous machinery as functions of one instruction each:
// transaction barriers, the tensor copy engine, clusters, dependent launch.
//
// Names and semantics are PTX's (ISA 9.0); nothing here knows a matrix.
#ifndef INVAR_KERNELS_CUDA_GEMM_ASYNC_H_
#define INVAR_KERNELS_CUDA_GEMM_ASYNC_H_

#include <cuda.h>

#include <cstdint>

namespace invar::cuda {

__device__ inline uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Where a swizzled tile may begin, at most 1,023 bytes behind `memory`.
__device__ inline std::byte* TileAligned(std::byte* memory) {
  return memory + (1024 - SharedAddress(memory) % 1024) % 1024;
}

// ---- Transaction barriers ---------------------------------------------------

__device__ inline void BarrierInit(uint64_t* barrier, uint32_t arrivals) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine and the cluster.
__device__ inline void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}

// A thread that has read or written shared memory arrives for itself: one for
// its warp behind __syncwarp is no faster, and racecheck cannot follow it where
// the compiler emits nothing for that.
__device__ inline void BarrierArrive(uint64_t* barrier) {
  asm volatile(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier))
      : "memory");
}

// Returns once the phase of this parity is complete.
__device__ inline void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Likewise, and what other blocks of the cluster have stored asynchronously is
// there.
__device__ inline void BarrierWaitCluster(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], "
      "%1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// ---- Named barriers ---------------------------------------------------------

// Of `threads` threads, those that only arrive counted; 0 is __syncthreads'.
__device__ inline void BarrierSync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void BarrierArrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// ---- The copy engine --------------------------------------------------------

__device__ inline void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The map's box at (byte column, row) into shared memory; its bytes count on
// `barrier`. What lies outside the matrix arrives as zeros.
__device__ inline void CopyBox(void* to, const CUtensorMap* map, int32_t column,
                               int32_t row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier"
      "::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          SharedAddress(to)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}

// The same box to the same place in each block of the cluster that `blocks` has
// a bit for; counts on the barrier at `barrier`'s place in each.
__device__ inline void CopyBoxToBlocks(void* to, const CUtensorMap* map,
                                       int32_t column, int32_t row,
                                       uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier"
      "::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], "
      "%5;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "h"(blocks)
      : "memory");
}

// The way back: the map's box from this block's shared memory; what lies
// outside the matrix is left out. It is the first to leave L2: a kernel writes
// once what only the next one reads. What other threads wrote needs a
// AsyncFence of theirs and a barrier first.
__device__ inline void CopyBoxOut(const CUtensorMap* map, int32_t column,
                                  int32_t row, const void* from) {
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint"
      " [%0, {%1, %2}], [%3], policy;\n"
      "}\n" ::"l"(map),
      "r"(column), "r"(row), "r"(SharedAddress(from))
      : "memory");
}
// What this thread has stored in shared memory the copy engine and the matrix
// units read, once all have met behind it.
__device__ inline void AsyncFence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// This thread's copies since the last batch become one.
__device__ inline void CopyOutCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Returns once this thread's batches but the last kPending have left shared
// memory; CopyOutEnd, once all have been written.
template <int kPending = 0>
__device__ inline void CopyOutWait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ inline void CopyOutEnd() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// ---- Clusters ---------------------------------------------------------------

__device__ inline uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline uint32_t ClusterBlocks() {
  uint32_t blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

// Arrives at the barrier that block `rank` of the cluster has at this place.
__device__ inline void BarrierArriveAt(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(rank)
      : "memory");
}

// As ClusterArrive, of a thread that has nothing to tell the others but what
// BarrierInitFence has told.
__device__ inline void ClusterArriveRelaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// The halves of ClusterSync; threads that have left are not waited for.
__device__ inline void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// All threads of all blocks of the cluster; orders their shared memory.
__device__ inline void ClusterSync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// What block `rank` of the cluster has at this place, as an address of all of
// the cluster's shared memory.
__device__ inline uint32_t AddressInRank(const void* place, uint32_t rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(remote)
      : "r"(SharedAddress(place)), "r"(rank));
  return remote;
}

// A float to `to`, asynchronously; its bytes count on the barrier at `barrier`.
// Both are of AddressInRank and of the same block.
__device__ inline void StoreAsync(uint32_t to, float value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], "
      "%1, [%2];" ::"r"(to),
      "f"(value), "r"(barrier)
      : "memory");
}

// Likewise four, on 16 bytes.
__device__ inline void StoreAsync4(uint32_t to, const float4& value,
                                   uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
      "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
      : "memory");
}

// ---- Programmatic dependent launch ------------------------------------------

// Returns once the kernel before this one has finished and its writes are
// visible. Without the launch attribute, at once.
__device__ inline void WaitForPriorKernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel start its own preparations.
__device__ inline void AllowNextKernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GEMM_ASYNC_H_
