// Exact top-k of rows of 16-bit numbers by one block, each row in the block's registers while it is searched and written.
//
// A word holds two keys, which are those of select.cuh: the bits of a positive number, one key for all NaNs, 0 for all
// else. A histogram of 256 keys around the threshold of the row before almost always holds the k-th largest key. If it
// does not, one of the keys' upper 8 bits says which 128 keys do. Every pass counts all that lies above its last bin
// in that bin, so a guess costs time, never exactness, and nothing has a capacity.
#pragma once

#include "select.cuh"

namespace tide {

constexpr int kWindow = 256, kWindowBelow = 96;  // keys of a histogram, and how many of them below the guess
constexpr int kChunkWords = 4;                   // 16 bytes: one load, one store
constexpr int kLowBits = 7;                      // of a key's 15, left to the second pass
constexpr unsigned kAllLanes = 0xffffffffu, kTops = 0x80008000u, kBoth = 0x00010001u;

struct RegistersShared {
  alignas(16) unsigned histograms[3][kWindow];  // of this pass, of the pass before, and one that is being cleared
  unsigned below[32];                           // where keys below a histogram are counted
  unsigned counts[18][32];                      // by chunk and warp: sure keys in the upper half, tied ones in the lower
};

// The row's words: chunk c of a thread lies at the numbers (c * threads + thread) * 8 to + 8.
template <int kChunks>
struct Row {
  uint32_t words[kChunks][kChunkWords];
};

// The word as if it were another: what one pass has computed from it is not kept for the next, where it would spill.
__device__ inline uint32_t fresh(uint32_t word) {
  asm volatile("" : "+r"(word));
  return word;
}

#ifdef __CUDACC__  // the emulation on a CPU brings its own
// The word's bytes by four selectors of four bits: those with the highest bit ask for eight copies of the byte's sign.
// Not by __byte_perm, which clears that bit.
template <unsigned kSelectors>
__device__ inline uint32_t permuted(uint32_t word) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(bytes) : "r"(word), "n"(kSelectors));
  return bytes;
}
#endif

// Sixteen ones for each half of the word whose highest bit is set.
__device__ inline uint32_t spread(uint32_t word) { return permuted<0xbb99>(word); }

// The highest bit of each half that is a NaN.
template <class F>
__device__ inline uint32_t nans(uint32_t word) {
  return ((word & ~kTops) + (0x7fffu - F::kInfinity) * kBoth) & kTops;
}

__device__ inline void load_words(uint32_t (&words)[kChunkWords], const uint16_t* from) {
  const uint4 chunk = *reinterpret_cast<const uint4*>(from);
  words[0] = chunk.x, words[1] = chunk.y, words[2] = chunk.z, words[3] = chunk.w;
}

// Numbers become keys.
template <class F>
__device__ inline void make_keys(uint32_t (&words)[kChunkWords]) {
  if ((nans<F>(words[0]) | nans<F>(words[1]) | nans<F>(words[2]) | nans<F>(words[3])) != 0) {  // rare
    for (int w = 0; w < kChunkWords; ++w) {
      const uint32_t word = fresh(words[w]), nan = spread(nans<F>(word));
      words[w] = (nan & F::kQuiet * kBoth) | (~nan & word);
    }
  }
  for (int w = 0; w < kChunkWords; ++w) words[w] &= ~spread(words[w]);
}

template <class F, int kChunks>
__device__ inline Row<kChunks> load_row(const uint16_t* from, int n) {
  Row<kChunks> row = {};
  for (int c = 0; c < kChunks; ++c) {
    const int first = (c * blockDim.x + threadIdx.x) * 8;
    if (first < n) load_words(row.words[c], from + first);
  }
  for (int c = 0; c < kChunks; ++c) make_keys<F>(row.words[c]);
  return row;
}

struct Bin {
  int at;  // -1: the histogram holds fewer than were asked for
  unsigned above, inside;
};

// The bin of rank `need` (from 1, the highest bin first); every warp finds it for itself.
__device__ inline Bin bin_of_rank(const unsigned* histogram, unsigned need) {
  constexpr int kOwn = kWindow / 32;
  const int lane = threadIdx.x % 32, first = kWindow - (lane + 1) * kOwn;
  unsigned counts[kOwn], own = 0;
  for (int b = 0; b < kOwn; ++b) own += counts[b] = histogram[first + b];
  unsigned upto = own;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, upto, step);
    if (lane >= step) upto += other;
  }
  Bin found = {-1, upto - own, 0};
  for (int b = kOwn - 1; b >= 0; --b) {
    if (found.at >= 0) break;
    if (found.above + counts[b] >= need) {
      found.at = first + b;
      found.inside = counts[b];
    } else {
      found.above += counts[b];
    }
  }
  const unsigned holders = __ballot_sync(kAllLanes, found.at >= 0);
  if (holders == 0) return {-1, 0, 0};
  const int holder = __ffs(static_cast<int>(holders)) - 1;
  return {__shfl_sync(kAllLanes, found.at, holder), __shfl_sync(kAllLanes, found.above, holder),
          __shfl_sync(kAllLanes, found.inside, holder)};
}

// One block's search: which histogram is next, and where to look first.
struct Search {
  RegistersShared& shared;
  int turn = 0;   // the histogram that is zero
  int guess = 0;  // the threshold of the row before; 0 before the first

  // Counts keys by (key - base) >> shift, from `base` on, all beyond the last bin in it.
  template <int kShift, int kChunks>
  __device__ Bin count(const Row<kChunks>& row, int base, unsigned need) {
    unsigned* own = shared.histograms[turn];
    unsigned* below = &shared.below[threadIdx.x % 32];  // a place of no meaning costs less than a branch
    turn = turn == 2 ? 0 : turn + 1;
    // Its last readers have met the barrier of the pass before this one.
    for (int b = threadIdx.x; b < kWindow; b += blockDim.x) shared.histograms[turn][b] = 0;
    for (int c = 0; c < kChunks; ++c)
      for (int w = 0; w < kChunkWords; ++w) {
        const uint32_t word = fresh(row.words[c][w]);
        const int low = static_cast<int>(word & 0xffffu) - base, high = static_cast<int>(word >> 16) - base;
        atomicAdd(low < 0 ? below : own + (low >> kShift < kWindow ? low >> kShift : kWindow - 1), 1u);
        atomicAdd(high < 0 ? below : own + (high >> kShift < kWindow ? high >> kShift : kWindow - 1), 1u);
      }
    __syncthreads();
    return bin_of_rank(own, need);
  }

  template <int kChunks>
  __device__ Cut cut(const Row<kChunks>& row, unsigned k) {
    int base = guess > kWindowBelow ? guess - kWindowBelow : 1;
    bool known = guess > 0;
    Bin bin;
    while (true) {
      if (!known) {
        bin = count<kLowBits>(row, 1, k);
        if (bin.at < 0) return {1, 0, 0};  // fewer than k positive numbers
        base = (bin.at << kLowBits) + 1;
      }
      bin = count<0>(row, base, k);
      if (bin.at >= 0 && bin.at < kWindow - 1) break;
      known = false;
    }
    const uint32_t key = base + bin.at;
    guess = static_cast<int>(key);
    const unsigned room = k - bin.above;
    if (room == bin.inside) return {key, 0, 0};
    return {key + 1, key, room};
  }
};

// A mask of the word's halves whose key is at least `key`.
__device__ inline uint32_t at_least(uint32_t word, uint32_t key) { return spread(word + (kTops - key * kBoth)); }

// The sum over the lanes before this one.
__device__ inline unsigned sum_of_lanes_before(unsigned value) {
  unsigned upto = value;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, upto, step);
    if (static_cast<int>(threadIdx.x % 32) >= step) upto += other;
  }
  return upto - value;
}

template <int kChunks>
__device__ inline void share_counts(const Row<kChunks>& row, const Cut& cut, RegistersShared& shared) {
  for (int c = 0; c < kChunks; ++c) {
    uint32_t sure = 0, tied = 0;  // of the low and the high halves
    for (int w = 0; w < kChunkWords; ++w) {
      const uint32_t above = at_least(row.words[c][w], cut.sure) & kBoth;
      sure += above;
      tied += (at_least(row.words[c][w], cut.tied) & kBoth) - above;
    }
    const unsigned own = ((sure + (sure >> 16)) << 16) + ((tied + (tied >> 16)) & 0xffffu);
    const unsigned all = __reduce_add_sync(kAllLanes, own);
    if (threadIdx.x % 32 == 0) shared.counts[c][threadIdx.x / 32] = all;
  }
  __syncthreads();
}

// Walks a warp through its chunks: what of each is kept, and where it goes.
struct Walk {
  const RegistersShared& shared;
  const Cut& cut;
  unsigned sure_done = 0, tied_done = 0;  // of all chunks before
  unsigned first = 0;                     // where the warp's part of this chunk begins among all that is kept
  unsigned room = 0;                      // for its ties
  bool all = false;                       // they all have room

  __device__ void enter(int c) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned counts = lane < blockDim.x / 32 ? shared.counts[c][lane] : 0, earlier = lane < warp ? counts : 0;
    const unsigned before = tied_done + __reduce_add_sync(kAllLanes, earlier & 0xffffu);
    room = before < cut.room ? cut.room - before : 0;
    all = (shared.counts[c][warp] & 0xffffu) <= room;
    first = sure_done + __reduce_add_sync(kAllLanes, earlier >> 16) + (room > 0 ? before : cut.room);
    sure_done += __reduce_add_sync(kAllLanes, counts >> 16);
    tied_done += __reduce_add_sync(kAllLanes, counts & 0xffffu);
  }
  __device__ bool partial() const { return room > 0 && !all; }
  __device__ uint32_t least() const { return room > 0 ? cut.tied : cut.sure; }
  __device__ unsigned kept() const { return sure_done + (tied_done < cut.room ? tied_done : cut.room); }
};

// Drops ties but the first `room` of the warp's.
__device__ inline void trim(uint32_t (&words)[kChunkWords], uint32_t tied, unsigned room) {
  unsigned own = 0;
  for (int w = 0; w < kChunkWords; ++w) own += ((words[w] & 0xffffu) == tied) + (words[w] >> 16 == tied);
  unsigned seen = sum_of_lanes_before(own);
  for (int w = 0; w < kChunkWords; ++w) {
    if ((words[w] & 0xffffu) == tied && seen++ >= room) words[w] &= 0xffff0000u;
    if (words[w] >> 16 == tied && seen++ >= room) words[w] &= 0xffffu;
  }
}

__device__ inline void store_kept(uint16_t* to, const uint32_t (&words)[kChunkWords], uint32_t least) {
  uint4 chunk;
  chunk.x = words[0] & at_least(words[0], least), chunk.y = words[1] & at_least(words[1], least);
  chunk.z = words[2] & at_least(words[2], least), chunk.w = words[3] & at_least(words[3], least);
  *reinterpret_cast<uint4*>(to) = chunk;
}

// A chunk of the row again, from the cache: registers cannot be indexed by a number that is not known in advance.
template <class F>
__device__ inline void reload(uint32_t (&words)[kChunkWords], const uint16_t* from, int first, int n) {
  for (int w = 0; w < kChunkWords; ++w) words[w] = 0;
  if (first < n) load_words(words, from + first);
  make_keys<F>(words);
}

// The row itself, with zeros at what is not kept.
template <class F, int kChunks>
__device__ inline void write_in_place(const Row<kChunks>& row, uint16_t* to, int n, const Cut& cut,
                                      RegistersShared& shared) {
  uint32_t tied = 0;  // a bit for each chunk that keeps all its ties
  int partial = -1;   // the chunk that keeps some
  unsigned room = 0;
  if (cut.room > 0) {
    share_counts(row, cut, shared);
    Walk walk{shared, cut};
#pragma unroll 1
    for (int c = 0; c < kChunks; ++c) {
      walk.enter(c);
      if (walk.partial()) {
        partial = c;
        room = walk.room;
      } else if (walk.room > 0) {
        tied |= 1u << c;
      }
    }
  }
  for (int c = 0; c < kChunks; ++c) {
    const int first = (c * blockDim.x + threadIdx.x) * 8;
    if (first < n && c != partial) store_kept(to + first, row.words[c], tied >> c & 1u ? cut.tied : cut.sure);
  }
  if (partial >= 0) {
    const int first = (partial * blockDim.x + threadIdx.x) * 8;
    uint32_t words[kChunkWords];
    reload<F>(words, to, first, n);
    trim(words, cut.tied, room);
    if (first < n) store_kept(to + first, words, cut.tied);
  }
}

// What is kept side by side, in the order of the columns, and then the unused places.
template <class F, int kChunks>
__device__ inline void write_compact(const Row<kChunks>& row, const uint16_t* from, int n, unsigned k, const Cut& cut,
                                     uint16_t* values, int32_t* indices, RegistersShared& shared) {
  share_counts(row, cut, shared);
  Walk walk{shared, cut};
#pragma unroll 1
  for (int c = 0; c < kChunks; ++c) {
    const int first = (c * blockDim.x + threadIdx.x) * 8;
    uint32_t words[kChunkWords];
    reload<F>(words, from, first, n);
    walk.enter(c);
    if (walk.partial()) trim(words, cut.tied, walk.room);
    unsigned own = 0;
    for (int w = 0; w < kChunkWords; ++w) own += __popc(at_least(words[w], walk.least()) & kBoth);
    unsigned place = walk.first + sum_of_lanes_before(own);
    for (int e = 0; e < 2 * kChunkWords; ++e) {
      const uint32_t key = words[e / 2] >> e % 2 * 16 & 0xffffu;
      if (key < walk.least()) continue;
      values[place] = static_cast<uint16_t>(key);
      indices[place++] = static_cast<int32_t>(first + e);
    }
  }
  for (unsigned j = walk.kept() + threadIdx.x; j < k; j += blockDim.x) {
    values[j] = 0;
    indices[j] = -1;
  }
}

// Rows from `first` to `last`, one after the other; compact where indices are given, else in place.
template <class F, int kChunks, bool kCompact>
__device__ inline void select_rows(uint16_t* pre, int64_t stride, int64_t first, int64_t last, int n, unsigned k,
                                   uint16_t* values, int32_t* indices, RegistersShared& shared) {
  for (int b = threadIdx.x; b < kWindow; b += blockDim.x) shared.histograms[0][b] = 0;
  __syncthreads();
  Search search{shared};
  for (int64_t i = first; i < last; ++i) {
    Row<kChunks> row = load_row<F, kChunks>(pre + i * stride, n);
    const Cut cut = search.cut(row, k);
    if (kCompact) {
      write_compact<F>(row, pre + i * stride, n, k, cut, values + i * k, indices + i * k, shared);
    } else {
      write_in_place<F>(row, pre + i * stride, n, cut, shared);
    }
  }
}

}  // namespace tide
