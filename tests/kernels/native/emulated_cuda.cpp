// Runs the block algorithms of csrc/cuda on a CPU: every thread of a block is a fibre, and each barrier or shuffle a
// switch to the next one. All fibres meet the same barriers, so a sweep over them is one step of the block.
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>

#define __device__

struct Index {
  int x;
};
static Index threadIdx;

namespace {

constexpr int kThreads = 64;
constexpr size_t kStackBytes = 256 * 1024;

ucontext_t scheduler, fibres[kThreads];
bool finished[kThreads];
uint64_t exchanged[kThreads];
std::function<void()> body;

void enter() {
  body();
  finished[threadIdx.x] = true;
}

void step() {
  const int self = threadIdx.x;
  swapcontext(&fibres[self], &scheduler);
  threadIdx.x = self;
}

void run_block(std::function<void()> f) {
  static std::vector<char> stacks(kThreads * kStackBytes);
  body = std::move(f);
  for (int t = 0; t < kThreads; ++t) {
    finished[t] = false;
    getcontext(&fibres[t]);
    fibres[t].uc_stack.ss_sp = stacks.data() + t * kStackBytes;
    fibres[t].uc_stack.ss_size = kStackBytes;
    fibres[t].uc_link = &scheduler;
    makecontext(&fibres[t], enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (int t = 0; t < kThreads; ++t) {
      if (finished[t]) {
        if (running) std::abort();  // one has ended before a barrier that another waits at
        continue;
      }
      threadIdx.x = t;
      swapcontext(&scheduler, &fibres[t]);
      running |= !finished[t];
    }
  }
}

}  // namespace

static void __syncthreads() { step(); }
static uint64_t __shfl_up_sync(unsigned, uint64_t value, int distance) {
  exchanged[threadIdx.x] = value;
  step();
  const uint64_t other = exchanged[threadIdx.x % 32 >= distance ? threadIdx.x - distance : threadIdx.x];
  step();
  return other;
}
static void atomicAdd(unsigned* address, unsigned value) { *address += value; }

#include "select.cuh"
#include "transpose.cuh"

namespace {

template <class F>
void select_rows(void* pre, int64_t rows, int64_t n, int64_t k, void* values, int32_t* indices, bool cached) {
  using Bits = typename F::Bits;
  static tide::SelectShared shared;
  std::vector<tide::Chunk<Bits>> cache(n / tide::Chunk<Bits>::kSize + 1);
  for (int64_t i = 0; i < rows; ++i) {
    run_block([=, &cache] {
      tide::select_row<F, kThreads>(static_cast<Bits*>(pre) + i * n, n, k, static_cast<Bits*>(values) + i * k,
                                    indices == nullptr ? nullptr : indices + i * k,
                                    cached ? cache[0].bits : nullptr, shared);
    });
  }
}

}  // namespace

extern "C" void emulated_select(int format, void* pre, int64_t rows, int64_t n, int64_t k, void* values,
                                int32_t* indices, int cached) {
  if (format == 0) select_rows<tide::Float32>(pre, rows, n, k, values, indices, cached);
  if (format == 1) select_rows<tide::BFloat16>(pre, rows, n, k, values, indices, cached);
  if (format == 2) select_rows<tide::Float16>(pre, rows, n, k, values, indices, cached);
}

// offsets, tokens and slots as the operator returns them; counts: zeros, [ranges of `range` tokens, n_latents]
extern "C" void emulated_transpose(const int32_t* indices, int64_t n_tokens, int64_t k, int64_t n_latents,
                                   int64_t range, unsigned* counts, int64_t* offsets, int32_t* tokens,
                                   int32_t* slots) {
  static uint64_t warps[32];
  static int disorder;
  const int64_t ranges = (n_tokens + range - 1) / range;
  const auto last = [=](int64_t r) { return (r + 1) * range < n_tokens ? (r + 1) * range : n_tokens; };
  for (int64_t r = 0; r < ranges; ++r)
    run_block([=] {
      tide::count_range<kThreads>(indices, r * range, last(r), k, n_latents, counts + r * n_latents);
    });
  run_block([=] { tide::start_ranges<kThreads>(counts, ranges, n_latents, offsets, warps); });
  for (int64_t r = 0; r < ranges; ++r)
    run_block([=] {
      tide::fill_range<kThreads>(indices, r * range, last(r), k, n_latents, offsets, counts + r * n_latents, tokens,
                                 slots, &disorder);
    });
}
