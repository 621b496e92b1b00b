// screened: the selection of x W^T + b, by a bfloat16 product and float32 dot products of what it leaves (screen.h).
#include "tensors.h"

namespace tide {
namespace {

constexpr int64_t kProductElements = 1 << 23;  // of a tile of tokens, in bfloat16
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
  Tensor packed, tokens, latents, product, columns, used, exact;
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
    tokens = reals({3, tile}), latents = reals({3, args.stride});
    product = torch::stable::new_empty(x, {tile, args.stride}, ScalarType::BFloat16);
    exact = reals({tile, args.capacity});
    args.packed = static_cast<uint32_t*>(packed.data_ptr());
    args.columns = static_cast<int32_t*>(columns.data_ptr()), args.used = static_cast<int32_t*>(used.data_ptr());
    args.alpha = data(tokens), args.beta = args.alpha + tile, args.cut = args.beta + tile;
    args.size = data(latents), args.error = args.size + args.stride, args.rest = args.error + args.stride;
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

void select_screened(const ScreenArgs& args) {
  const Kernels& run = kernels();
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, args.n, 1 + args.n / threads, [&](int64_t first, int64_t last) {
    const Scratch<int32_t> cursors(args.n_tokens);
    run.screen_exact(args, first, last, cursors.data());
  });
  over_tokens(args, run.screen_finish);
}

// How many tokens are done.
int64_t screened(const Tensor& x, const Tensor& W, std::optional<Tensor> bias, double share, Tensor values,
                 Tensor indices) {
  require_matrix(W, "W");
  require_matrix(values, "values");
  const int64_t n = W.size(0), n_tokens = values.size(0), k = values.size(1);
  require_shape(x, "x", n_tokens, W.size(1));
  require_shape(indices, "indices", n_tokens, k);
  require(n <= INT32_MAX - 64, "W has 2^31 rows or more: int32 indices cannot name them");
  require(k >= 1 && k <= n, "k is " + std::to_string(k) + ", not from 1 to " + std::to_string(n));
  require(indices.scalar_type() == ScalarType::Int && indices.is_contiguous(), "indices have to be contiguous int32");
  float* value = target(values, "values", n_tokens * k);
  int64_t tile = kProductElements / n;
  tile = tile < 256 ? 256 : tile > 1024 ? 1024 : tile;
  const Buffers buffers(x, W, bias, k, tile < n_tokens ? tile : n_tokens);
  int64_t done = 0;
  while (done < n_tokens) {
    ScreenArgs args = buffers.args;
    args.n_tokens = tile < n_tokens - done ? tile : n_tokens - done;
    args.x.data = static_cast<const float*>(args.x.data) + done * args.x.stride;
    args.values = value + done * k;
    args.indices = static_cast<int32_t*>(indices.data_ptr()) + done * k;
    if ((done == 0 && !promising(args, share)) || !screen(args, share)) break;
    select_screened(args);
    done += args.n_tokens;
  }
  return done;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("screened", TORCH_BOX(&screened)); }

}  // namespace tide
