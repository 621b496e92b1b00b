// The places of a code by latent, tokens ascending, by counting: tokens are cut into ranges, a block each.
//
// count_range adds up integers, so its order does not show. fill_range takes a range's tokens one after the other.
// The places of a token whose latents ascend are filled side by side; of one that may repeat a latent, by one thread.
// Indices out of range count as unused.
#pragma once

#include "block.cuh"

namespace tide {

// counts [n_latents]: of one range, zero before
template <int kThreads>
__device__ inline void count_range(const int32_t* indices, int64_t first, int64_t last, int64_t k, int64_t n_latents,
                                   unsigned* counts) {
  for (int64_t p = first * k + threadIdx.x; p < last * k; p += kThreads) {
    const int32_t l = indices[p];
    if (l >= 0 && l < n_latents) atomicAdd(&counts[l], 1u);
  }
}

// One block: offsets [n_latents + 1] from the counts [ranges, n_latents], which become each range's start within
// its latent.
template <int kThreads>
__device__ inline void start_ranges(unsigned* counts, int64_t ranges, int64_t n_latents, int64_t* offsets,
                                    uint64_t* warps) {
  uint64_t done = 0;
  for (int64_t tile = 0; tile < n_latents; tile += kThreads) {
    const int64_t l = tile + threadIdx.x;
    unsigned own = 0;
    for (int64_t r = 0; r < ranges && l < n_latents; ++r) {
      const unsigned count = counts[r * n_latents + l];
      counts[r * n_latents + l] = own;
      own += count;
    }
    uint64_t total;
    const uint64_t before = sum_before<kThreads>(own, warps, total);
    if (l < n_latents) offsets[l] = static_cast<int64_t>(done + before);
    done += total;
  }
  if (threadIdx.x == 0) offsets[n_latents] = static_cast<int64_t>(done);
}

// next [n_latents]: the range's starts, which are moved on.
template <int kThreads>
__device__ inline void fill_range(const int32_t* indices, int64_t first, int64_t last, int64_t k, int64_t n_latents,
                                  const int64_t* offsets, unsigned* next, int32_t* tokens, int32_t* slots,
                                  int* shared_disorder) {
  for (int64_t token = first; token < last; ++token) {
    const int32_t* row = indices + token * k;
    if (threadIdx.x == 0) *shared_disorder = 0;
    __syncthreads();
    for (int64_t j = 1 + threadIdx.x; j < k; j += kThreads)
      if (row[j] >= 0 && row[j] <= row[j - 1]) *shared_disorder = 1;
    __syncthreads();
    const bool alone = *shared_disorder;
    for (int64_t j = alone && threadIdx.x > 0 ? k : threadIdx.x; j < k; j += alone ? 1 : kThreads) {
      const int32_t l = row[j];
      if (l < 0 || l >= n_latents) continue;
      const int64_t place = offsets[l] + next[l]++;
      tokens[place] = static_cast<int32_t>(token);
      slots[place] = static_cast<int32_t>(j);
    }
    __syncthreads();  // the next token reads `next`
  }
}

}  // namespace tide
