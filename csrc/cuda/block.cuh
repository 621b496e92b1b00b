// Sums over a block of threads.
#pragma once

#include <cstdint>

namespace tide {

// The sum of `value` over the threads before this one; `total` is that over all. Every thread calls it.
template <int kThreads>
__device__ inline uint64_t sum_before(uint64_t value, uint64_t* warps, uint64_t& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == 31) warps[warp] = inclusive;
  __syncthreads();
  uint64_t before = 0;
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) before = total;
    total += warps[w];
  }
  __syncthreads();  // the next call writes `warps`
  return before + inclusive - value;
}

}  // namespace tide
