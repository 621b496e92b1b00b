// Exact top-k of one row by one block: a radix search for the k-th largest key, 11 bits a pass, then a pass that
// writes what is kept, in the order of the columns.
//
// Keys are those of cpu/select.h: the bits of a positive number, one key for all NaNs above infinity; all else is
// never taken. Counts are integers, so the order in which threads add to them does not show. Nothing here has a
// capacity: a row of any length and any number of ties takes the same passes.
#pragma once

#include "block.cuh"

namespace tide {

template <class BitsType, int kKeyBitsValue, uint32_t kInfinityValue, uint32_t kQuietValue>
struct Format {
  using Bits = BitsType;
  static constexpr int kKeyBits = kKeyBitsValue;
  static constexpr uint32_t kInfinity = kInfinityValue, kQuiet = kQuietValue;
  static constexpr uint32_t kSign = 1u << kKeyBitsValue;

  // 0 for what is never taken
  __device__ static uint32_t key(Bits bits) {
    const uint32_t magnitude = bits & (kSign - 1);
    if (magnitude > kInfinity) return kInfinity + 1;
    return bits & kSign ? 0 : magnitude;
  }
  __device__ static Bits bits(uint32_t key) { return static_cast<Bits>(key > kInfinity ? kQuiet : key); }
};

using Float32 = Format<uint32_t, 31, 0x7f800000u, 0x7fc00000u>;
using BFloat16 = Format<uint16_t, 15, 0x7f80u, 0x7fc0u>;
using Float16 = Format<uint16_t, 15, 0x7c00u, 0x7e00u>;

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

struct SelectShared {
  unsigned histogram[kBins];
  uint64_t warps[32];
  unsigned bin, above, inside;
};

// What is taken: keys from `sure` on, and of those equal to `tied` the first `room`.
struct Cut {
  uint32_t sure, tied;
  unsigned room;
};

template <class Bits>
struct Chunk {
  static constexpr int kSize = 16 / sizeof(Bits);  // what one load of 16 bytes brings
  alignas(16) Bits bits[kSize];
};

template <class Bits>
__device__ inline Chunk<Bits> chunk_at(const Bits* row, int64_t first, int64_t n) {
  Chunk<Bits> chunk;
  const Bits* from = row + first;
  if (first + Chunk<Bits>::kSize <= n && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    chunk = *reinterpret_cast<const Chunk<Bits>*>(from);
  } else {
    for (int e = 0; e < Chunk<Bits>::kSize; ++e) chunk.bits[e] = first + e < n ? from[e] : 0;
  }
  return chunk;
}

template <class Bits>
__device__ inline void store_chunk(Bits* row, int64_t first, int64_t n, const Chunk<Bits>& chunk) {
  Bits* to = row + first;
  if (first + Chunk<Bits>::kSize <= n && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    *reinterpret_cast<Chunk<Bits>*>(to) = chunk;
  } else {
    for (int e = 0; e < Chunk<Bits>::kSize && first + e < n; ++e) to[e] = chunk.bits[e];
  }
}

// In the histogram, the bin of the key of rank `need` (from 1, the largest first), the count above it and inside.
// `need` is at most the sum of the histogram.
template <int kThreads>
__device__ inline void find_bin(SelectShared& shared, unsigned need) {
  constexpr int kOwn = kBins / kThreads;
  const int top = kBins - 1 - threadIdx.x * kOwn;
  uint64_t own = 0, total;
  for (int b = 0; b < kOwn; ++b) own += shared.histogram[top - b];
  uint64_t above = sum_before<kThreads>(own, shared.warps, total);
  for (int b = 0; b < kOwn; ++b) {
    const unsigned count = shared.histogram[top - b];
    if (above < need && need <= above + count) {
      shared.bin = top - b;
      shared.above = static_cast<unsigned>(above);
      shared.inside = count;
    }
    above += count;
  }
  __syncthreads();
}

// cache: room for the row in shared memory, or null; where there is, the first pass fills it.
template <class F, int kThreads>
__device__ inline Cut find_cut(const typename F::Bits* row, int64_t n, unsigned k, typename F::Bits* cache,
                               SelectShared& shared) {
  using Bits = typename F::Bits;
  constexpr int kSize = Chunk<Bits>::kSize;
  uint32_t prefix = 0;
  unsigned need = k;
  for (int high = F::kKeyBits; high > 0;) {
    const int low = high > kDigitBits ? high - kDigitBits : 0;
    const bool first_pass = high == F::kKeyBits;
    for (int b = threadIdx.x; b < kBins; b += kThreads) shared.histogram[b] = 0;
    __syncthreads();
    uint64_t positive = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * kSize; i < n; i += kThreads * kSize) {
      const Chunk<Bits> chunk = chunk_at(first_pass || cache == nullptr ? row : cache, i, n);
      if (first_pass && cache != nullptr) *reinterpret_cast<Chunk<Bits>*>(cache + i) = chunk;
      for (int e = 0; e < kSize; ++e) {
        const uint32_t key = F::key(chunk.bits[e]);
        positive += key > 0;
        if (key > 0 && key >> high == prefix) atomicAdd(&shared.histogram[key >> low & ((1u << (high - low)) - 1)], 1u);
      }
    }
    __syncthreads();
    if (first_pass) {
      uint64_t total;
      sum_before<kThreads>(positive, shared.warps, total);
      if (total <= k) return {1, 0, 0};
    }
    find_bin<kThreads>(shared, need);
    need -= shared.above;
    prefix = prefix << (high - low) | shared.bin;
    const bool whole = shared.inside == need;
    __syncthreads();  // all have read; the next pass clears
    if (whole) return {prefix << low, 0, 0};
    high = low;
  }
  return {prefix + 1, prefix, need};
}

// Writes the row's code: values and indices, or (indices null) the row itself with zeros at what is not kept.
template <class F, int kThreads>
__device__ inline void write_row(const typename F::Bits* source, int64_t n, unsigned k, const Cut& cut,
                                 typename F::Bits* values, int32_t* indices, SelectShared& shared) {
  using Bits = typename F::Bits;
  constexpr int kSize = Chunk<Bits>::kSize;
  unsigned sure_done = 0, tied_done = 0;
  for (int64_t tile = 0; tile < n; tile += kThreads * kSize) {
    const int64_t first = tile + static_cast<int64_t>(threadIdx.x) * kSize;
    uint32_t keys[kSize];
    uint64_t own = 0;  // two counts in one sum: a row has fewer than 2^31 columns
    Chunk<Bits> chunk = {};
    if (first < n) chunk = chunk_at(source, first, n);
    for (int e = 0; e < kSize; ++e) {
      keys[e] = F::key(chunk.bits[e]);
      own += static_cast<uint64_t>(keys[e] >= cut.sure) << 32;
      own += keys[e] == cut.tied && cut.room > 0;
    }
    uint64_t total;
    const uint64_t before = sum_before<kThreads>(own, shared.warps, total);
    unsigned sure = sure_done + static_cast<unsigned>(before >> 32);
    unsigned tied = tied_done + static_cast<unsigned>(before);
    for (int e = 0; e < kSize && first + e < n; ++e) {
      const bool is_sure = keys[e] >= cut.sure, is_tied = keys[e] == cut.tied && cut.room > 0;
      const bool keep = is_sure || (is_tied && tied < cut.room);
      if (indices != nullptr && keep) {
        const unsigned place = sure + (tied < cut.room ? tied : cut.room);
        values[place] = F::bits(keys[e]);
        indices[place] = static_cast<int32_t>(first + e);
      }
      if (!keep) keys[e] = 0;
      sure += is_sure;
      tied += is_tied;
    }
    if (indices == nullptr && first < n) {
      for (int e = 0; e < kSize; ++e) chunk.bits[e] = F::bits(keys[e]);
      store_chunk(values, first, n, chunk);
    }
    sure_done += static_cast<unsigned>(total >> 32);
    tied_done += static_cast<unsigned>(total);
  }
  if (indices == nullptr) return;
  const unsigned taken = sure_done + (tied_done < cut.room ? tied_done : cut.room);
  for (unsigned j = taken + threadIdx.x; j < k; j += kThreads) {
    values[j] = 0;
    indices[j] = -1;
  }
}

template <class F, int kThreads>
__device__ inline void select_row(typename F::Bits* row, int64_t n, unsigned k, typename F::Bits* values,
                                  int32_t* indices, typename F::Bits* cache, SelectShared& shared) {
  const Cut cut = find_cut<F, kThreads>(row, n, k, cache, shared);
  const typename F::Bits* source = cache == nullptr ? row : cache;
  write_row<F, kThreads>(source, n, k, cut, indices == nullptr ? row : values, indices, shared);
}

}  // namespace tide
