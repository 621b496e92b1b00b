// What every screen needs: its operands, the tokens in its numbers and the bounds of their errors.
#pragma once

#include "tensors.h"

namespace tide {

constexpr int64_t kMostBytes = 1 << 16;  // columns of int8, whose products' sums fit into 32 bits
constexpr int64_t kTrial = 16;           // a trial is made of so many tokens, and of this fraction of the latents

inline Tensor rows_of_floats(const Tensor& t, const char* name) {
  require_matrix(t, name);
  require(t.scalar_type() == ScalarType::Float, std::string(name) + " is not float32: cast it");
  return adjacent_columns(t);
}

// With the memory of the largest tile of tokens.
struct Screened {
  Tensor x, W;
  std::optional<Tensor> bias;
  Tensor packed, tokens, offsets, latents;
  ScreenArgs args{};

  Screened(const Tensor& given_x, const Tensor& given_W, const std::optional<Tensor>& given_bias, int64_t tile)
      : x(rows_of_floats(given_x, "x")), W(rows_of_floats(given_W, "W")) {
    args.d = W.size(1), args.n = W.size(0);
    args.x = matrix(x), args.W = matrix(W);
    if (given_bias.has_value()) {
      require(given_bias->is_cpu() && given_bias->numel() == args.n, "b is not a vector of one element per latent");
      bias = floats(*given_bias);
      args.bias = float_data(*bias);
    }
    // Rows an odd number of cache lines apart, so that a column's entries do not compete for one place in the cache.
    args.stride = ((args.n + 31) / 32 | 1) * 32;
    packed = integers({tile, most_pairs(args.d)}), offsets = integers({tile});
    tokens = reals({4, tile}), latents = reals({2, args.stride});
    args.packed = static_cast<uint32_t*>(packed.data_ptr());
    args.alpha = data(tokens), args.beta = args.alpha + tile, args.cut = args.beta + tile;
    args.scale = args.cut + tile, args.offset = static_cast<int32_t*>(offsets.data_ptr());
    args.size = data(latents), args.error = args.size + args.stride;
  }

  // Tokens first .. first + n_tokens.
  ScreenArgs part(int64_t first, int64_t n_tokens) const {
    ScreenArgs args = this->args;
    args.n_tokens = n_tokens;
    args.x.data = static_cast<const float*>(args.x.data) + first * args.x.stride;
    return args;
  }

  Tensor integers(std::vector<int64_t> size) const { return torch::stable::new_empty(x, size, ScalarType::Int); }
  Tensor reals(std::vector<int64_t> size) const { return torch::stable::new_empty(x, size, ScalarType::Float); }
  static float* data(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }
};

// The first step of a screen.
inline void screen_tokens(const ScreenArgs& args) {
  torch::stable::parallel_for(0, args.n_tokens, 1 + 16384 / (args.d + 1),
                              [&](int64_t first, int64_t last) { kernels().screen_tokens(args, first, last); });
}

}  // namespace tide
