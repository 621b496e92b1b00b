// screened: the selection of x W^T + b, by an int8 or bfloat16 product and float32 dot products of what it leaves. See
// screen.h.
#include "tensors.h"

namespace tide {
namespace {

constexpr int64_t kProductElements = 1 << 23;  // of a tile of tokens, in bfloat16
constexpr int64_t kMostBytes = 1 << 16;        // columns of int8, whose products' sums fit into 32 bits
constexpr int64_t kTrial = 16;                 // a trial is made of so many tokens, and of this fraction of the latents

Tensor rows_of_floats(const Tensor& t, const char* name) {
  require_matrix(t, name);
  require(t.scalar_type() == ScalarType::Float, std::string(name) + " is not float32: cast it");
  return adjacent_columns(t);
}

// The memory of the largest tile, and the operands of all.
struct Buffers {
  Tensor x, W;
  std::optional<Tensor> bias;
  Tensor packed, tokens, offsets, latents, product, columns, used, exact;
  ScreenArgs args{};

  Buffers(const Tensor& given_x, const Tensor& given_W, const std::optional<Tensor>& given_bias, int64_t k, int64_t tile)
      : x(rows_of_floats(given_x, "x")), W(rows_of_floats(given_W, "W")) {
    args.d = W.size(1), args.n = W.size(0), args.k = k;
    args.x = matrix(x), args.W = matrix(W);
    if (given_bias.has_value()) {
      require(given_bias->is_cpu() && given_bias->numel() == args.n, "b is not a vector of one element per latent");
      bias = floats(*given_bias);
      args.bias = float_data(*bias);
    }
    args.capacity = 3 * k / 2 + args.n / 32 + 64;
    packed = integers({tile, most_pairs(args.d)}), columns = integers({tile, args.capacity}), used = integers({tile});
    // Rows an odd number of cache lines apart, so that a column's entries do not all compete for one place in the cache.
    args.stride = ((args.n + 31) / 32 | 1) * 32;
    tokens = reals({4, tile}), offsets = integers({tile}), latents = reals({2, args.stride});
    product = torch::stable::new_empty(x, {tile, args.stride}, ScalarType::BFloat16);
    exact = reals({tile, args.capacity});
    args.packed = static_cast<uint32_t*>(packed.data_ptr());
    args.columns = static_cast<int32_t*>(columns.data_ptr()), args.used = static_cast<int32_t*>(used.data_ptr());
    args.alpha = data(tokens), args.beta = args.alpha + tile, args.cut = args.beta + tile;
    args.scale = args.cut + tile, args.offset = static_cast<int32_t*>(offsets.data_ptr());
    args.size = data(latents), args.error = args.size + args.stride;
    args.product = static_cast<uint16_t*>(product.data_ptr()), args.exact = data(exact);
  }

  Tensor integers(std::vector<int64_t> size) const { return torch::stable::new_empty(x, size, ScalarType::Int); }
  Tensor reals(std::vector<int64_t> size) const { return torch::stable::new_empty(x, size, ScalarType::Float); }
  static float* data(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }
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
  torch::stable::parallel_for(0, args.n_tokens, 1 + 16384 / (args.d + 1),
                              [&](int64_t first, int64_t last) { run.screen_tokens(args, first, last); });
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

// A range of tokens of `all`.
ScreenArgs tokens_of(const ScreenArgs& all, int64_t first, int64_t n_tokens) {
  ScreenArgs args = all;
  args.n_tokens = n_tokens;
  args.x.data = static_cast<const float*>(args.x.data) + first * args.x.stride;
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
      const ScreenArgs args = tokens_of(buffers.args, done, tile < n_tokens - done ? tile : n_tokens - done);
      if ((!tried && !promising(args, share)) || !screened_tile(args, share)) break;
      done += args.n_tokens;
    }
  }
  return done;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("screened", TORCH_BOX(&screened)); }

}  // namespace tide
