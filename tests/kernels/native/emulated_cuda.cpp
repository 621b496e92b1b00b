// Runs the block algorithms of csrc/cuda on a CPU: every thread of a block is a fibre, which waits at a barrier until
// all of its block, or at a shuffle all of its warp, have come there.
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>

#define __device__

struct Index {
  int x;
};
static Index threadIdx, blockDim;

struct uint4 {
  uint32_t x, y, z, w;
};

namespace {

constexpr int kThreads = 64, kMostThreads = 128;
constexpr size_t kStackBytes = 256 * 1024;

struct Barrier {
  int arrived, generation;
};

ucontext_t scheduler, fibres[kMostThreads];
bool finished[kMostThreads], progress;
uint64_t exchanged[kMostThreads];
Barrier block, warps[kMostThreads / 32];
std::function<void()> body;

void enter() {
  body();
  finished[threadIdx.x] = progress = true;
}

void meet(Barrier& barrier, int size) {
  const int generation = barrier.generation, self = threadIdx.x;
  progress = true;
  if (++barrier.arrived == size) {
    barrier = {0, generation + 1};
    return;
  }
  while (barrier.generation == generation) {
    swapcontext(&fibres[self], &scheduler);
    threadIdx.x = self;
  }
}

void meet_warp() { meet(warps[threadIdx.x / 32], 32); }

// The values of the warp's lanes, until each lane has used what the function makes of them.
template <class Function>
auto exchange(uint64_t value, Function use) {
  exchanged[threadIdx.x] = value;
  meet_warp();
  const auto result = use(exchanged + threadIdx.x / 32 * 32);
  meet_warp();
  return result;
}

void run_block(int threads, std::function<void()> f) {
  static std::vector<char> stacks(kMostThreads * kStackBytes);
  body = std::move(f);
  blockDim.x = threads;
  block = {};
  for (Barrier& warp : warps) warp = {};
  for (int t = 0; t < threads; ++t) {
    finished[t] = false;
    getcontext(&fibres[t]);
    fibres[t].uc_stack.ss_sp = stacks.data() + t * kStackBytes;
    fibres[t].uc_stack.ss_size = kStackBytes;
    fibres[t].uc_link = &scheduler;
    makecontext(&fibres[t], enter, 0);
  }
  for (bool running = true; running;) {
    running = progress = false;
    for (int t = 0; t < threads; ++t) {
      if (finished[t]) continue;
      threadIdx.x = t;
      swapcontext(&scheduler, &fibres[t]);
      running |= !finished[t];
    }
    if (!progress) std::abort();  // all wait: one has ended before a barrier, or waits at another
  }
}

}  // namespace

static void __syncthreads() { meet(block, blockDim.x); }
template <class T>
static T __shfl_sync(unsigned, T value, int lane) {
  return exchange(static_cast<uint64_t>(value), [=](const uint64_t* lanes) { return static_cast<T>(lanes[lane]); });
}
template <class T>
static T __shfl_up_sync(unsigned, T value, int distance) {
  const int lane = threadIdx.x % 32;
  return exchange(static_cast<uint64_t>(value), [=](const uint64_t* lanes) {
    return static_cast<T>(lanes[lane >= distance ? lane - distance : lane]);
  });
}
static unsigned __ballot_sync(unsigned, bool set) {
  return exchange(set, [](const uint64_t* lanes) {
    unsigned mask = 0;
    for (int l = 0; l < 32; ++l) mask |= static_cast<unsigned>(lanes[l]) << l;
    return mask;
  });
}
static unsigned __reduce_add_sync(unsigned, unsigned value) {
  return exchange(value, [](const uint64_t* lanes) {
    unsigned sum = 0;
    for (int l = 0; l < 32; ++l) sum += static_cast<unsigned>(lanes[l]);
    return sum;
  });
}
static int __ffs(int mask) { return __builtin_ffs(mask); }
static int __popc(unsigned mask) { return __builtin_popcount(mask); }
static void atomicAdd(unsigned* address, unsigned value) { *address += value; }

namespace tide {

// PTX's prmt of the word and 0.
template <unsigned kSelectors>
uint32_t permuted(uint32_t word) {
  uint32_t result = 0;
  for (int b = 0; b < 4; ++b) {
    const unsigned selector = kSelectors >> 4 * b & 15u;
    const uint32_t byte = static_cast<uint64_t>(word) >> 8 * (selector & 7u) & 255u;
    result |= (selector & 8u ? (byte & 128u ? 255u : 0u) : byte) << 8 * b;
  }
  return result;
}

}  // namespace tide

#include "registers.cuh"

namespace {

template <class F>
void select_rows(void* pre, int64_t rows, int64_t n, int64_t k, void* values, int32_t* indices, bool cached) {
  using Bits = typename F::Bits;
  static tide::SelectShared shared;
  std::vector<tide::Chunk<Bits>> cache(n / tide::Chunk<Bits>::kSize + 1);
  for (int64_t i = 0; i < rows; ++i) {
    run_block(kThreads, [=, &cache] {
      tide::select_row<F, kThreads>(static_cast<Bits*>(pre) + i * n, n, k, static_cast<Bits*>(values) + i * k,
                                    indices == nullptr ? nullptr : indices + i * k,
                                    cached ? cache[0].bits : nullptr, shared);
    });
  }
}

template <class F, int kChunks>
void select_in_registers(uint16_t* pre, int64_t rows, int64_t n, int64_t k, uint16_t* values, int32_t* indices) {
  static tide::RegistersShared shared;
  const int threads = static_cast<int>((n + kChunks * 8 - 1) / (kChunks * 8) + 31) / 32 * 32;
  run_block(threads, [=] {
    if (indices == nullptr) {
      tide::select_rows<F, kChunks, false>(pre, n, 0, rows, n, k, values, indices, shared);
    } else {
      tide::select_rows<F, kChunks, true>(pre, n, 0, rows, n, k, values, indices, shared);
    }
  });
}

}  // namespace

extern "C" void emulated_select(int format, void* pre, int64_t rows, int64_t n, int64_t k, void* values,
                                int32_t* indices, int cached) {
  if (format == 0) select_rows<tide::Float32>(pre, rows, n, k, values, indices, cached);
  if (format == 1) select_rows<tide::BFloat16>(pre, rows, n, k, values, indices, cached);
  if (format == 2) select_rows<tide::Float16>(pre, rows, n, k, values, indices, cached);
}

// All rows by one block, one after the other; chunks: 6 or 18 of each thread, of which there are at most 128.
extern "C" void emulated_registers(int format, uint16_t* pre, int64_t rows, int64_t n, int64_t k, uint16_t* values,
                                   int32_t* indices, int chunks) {
  const auto run = format == 1 ? (chunks == 6 ? select_in_registers<tide::BFloat16, 6>
                                              : select_in_registers<tide::BFloat16, 18>)
                               : (chunks == 6 ? select_in_registers<tide::Float16, 6>
                                              : select_in_registers<tide::Float16, 18>);
  run(pre, rows, n, k, values, indices);
}
