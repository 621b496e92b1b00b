// screened: the selection of x W^T + b, by an int8 or bfloat16 product and float32 dot products of what it leaves. See
// screen.h.
#include "screened.h"

namespace tide {
namespace {

constexpr int64_t kProductElements = 1 << 23;  // of a tile of tokens, in bfloat16

// The memory of the largest tile, besides.
struct Buffers : Screened {
  Tensor product, columns, used, exact;

  Buffers(const Tensor& x, const Tensor& W, const std::optional<Tensor>& bias, int64_t k, int64_t tile)
      : Screened(x, W, bias, tile) {
    args.k = k;
    args.capacity = 3 * k / 2 + args.n / 32 + 64;
    columns = integers({tile, args.capacity}), used = integers({tile});
    product = torch::stable::new_empty(this->x, {tile, args.stride}, ScalarType::BFloat16);
    exact = reals({tile, args.capacity});
    args.columns = static_cast<int32_t*>(columns.data_ptr()), args.used = static_cast<int32_t*>(used.data_ptr());
    args.product = static_cast<uint16_t*>(product.data_ptr()), args.exact = data(exact);
  }
};

// Whether at most a `share` of the latents are candidates, and few tokens have so many that they are done in full.
bool worthwhile(const ScreenArgs& a, double share) {
  int64_t places = 0, whole = 0;
  for (int64_t i = 0; i < a.n_tokens; ++i) {
    places += a.used[i] > 0 ? a.used[i] : 0;
    whole += a.used[i] < 0;
  }
  return places <= share * a.n_tokens * a.n && 4 * whole <= share * a.n_tokens;
}

template <class F>
void over_tokens(const ScreenArgs& args, const F& step) {
  torch::stable::parallel_for(0, args.n_tokens, 1 + 16384 / args.n, [&](int64_t first, int64_t last) {
    const Scratch<int32_t> scratch(2 * select_scratch(args.n) + args.n);
    step(args, first, last, scratch.data());
  });
}

// The candidates of a tile of tokens. Returns whether it is worthwhile to continue.
bool screen(const ScreenArgs& args, double share) {
  const Kernels& run = kernels();
  const int64_t latents = kScreenVectors * run.lanes;
  screen_tokens(args);
  torch::stable::parallel_for(0, (args.n + latents - 1) / latents, 1, [&](int64_t first, int64_t last) {
    const Scratch<uint32_t> scratch((most_pairs(args.d) + args.n_tokens) * latents);
    run.screen_product(args, first, last, scratch.data());
  });
  over_tokens(args, run.screen_rows);
  return worthwhile(args, share);
}

// A screen of few tokens and a part of the latents costs little and shows whether that of all pays.
bool promising(ScreenArgs args, double share) {
  if (args.n < 64 * kTrial) return true;
  args.n_tokens = args.n_tokens < kTrial ? args.n_tokens : kTrial;
  args.n = (args.n + kTrial - 1) / kTrial;
  args.k = (args.k + kTrial - 1) / kTrial;
  return screen(args, share);
}

// Returns whether the screen was worthwhile, and with it the selection done.
bool screened_tile(const ScreenArgs& args, double share) {
  if (!screen(args, share)) return false;
  const Kernels& run = kernels();
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, args.n, 1 + args.n / threads, [&](int64_t first, int64_t last) {
    const Scratch<int32_t> cursors(args.n_tokens);
    run.screen_exact(args, first, last, cursors.data());
  });
  over_tokens(args, run.screen_finish);
  return true;
}

// A range of tokens.
ScreenArgs tokens_of(const Buffers& all, int64_t first, int64_t n_tokens) {
  ScreenArgs args = all.part(first, n_tokens);
  args.values += first * args.k;
  args.indices += first * args.k;
  return args;
}

// How many tokens are done.
int64_t screened(const Tensor& x, const Tensor& W, std::optional<Tensor> bias, double int8_share, double bf16_share,
                 Tensor values, Tensor indices) {
  require_matrix(W, "W");
  require_matrix(values, "values");
  const int64_t n = W.size(0), n_tokens = values.size(0), k = values.size(1);
  require_shape(x, "x", n_tokens, W.size(1));
  require_shape(indices, "indices", n_tokens, k);
  require(n <= INT32_MAX - 64, "W has 2^31 rows or more: int32 indices cannot name them");
  require(k >= 1 && k <= n, "k is " + std::to_string(k) + ", not from 1 to " + std::to_string(n));
  require(indices.scalar_type() == ScalarType::Int && indices.is_contiguous(), "indices have to be contiguous int32");
  int64_t tile = kProductElements / n;
  tile = tile < 256 ? 256 : tile > 1024 ? 1024 : tile;
  Buffers buffers(x, W, bias, k, tile < n_tokens ? tile : n_tokens);
  buffers.args.values = target(values, "values", n_tokens * k);
  buffers.args.indices = static_cast<int32_t*>(indices.data_ptr());
  int64_t done = 0;
  for (const Screen screen : {Screen::int8, Screen::bf16}) {
    const double share = screen == Screen::int8 ? (W.size(1) <= kMostBytes ? int8_share : 0) : bf16_share;
    buffers.args.screen = screen;
    for (bool tried = false; share > 0 && done < n_tokens; tried = true) {
      const ScreenArgs args = tokens_of(buffers, done, tile < n_tokens - done ? tile : n_tokens - done);
      if ((!tried && !promising(args, share)) || !screened_tile(args, share)) break;
      done += args.n_tokens;
    }
  }
  return done;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("screened", TORCH_BOX(&screened)); }

}  // namespace tide
