// gather and sampled: products of tokens with the weight rows of their latents.
#include "code.h"

namespace tide {
namespace {

// Tokens that share a packing of W in `sampled`. Not by the number of threads, since whether to pack depends on it.
constexpr int64_t kGroupTokens = 128;

Scratch<char> packing_scratch(int64_t tokens) { return Scratch<char>(kSegmentBytes + tokens * sizeof(int32_t)); }

// The places of each token, all in front and ascending, without those whose values are 0.
struct Nonzero {
  Tensor values, indices;
  std::vector<int32_t> used;

  Nonzero(const Tensor& given, const Code& code, int64_t n_tokens, int64_t k)
      : values(given), indices(code.indices), used(n_tokens) {
    const float* value = float_data(values);
    over_rows(n_tokens, k, [&](int64_t i) {
      int32_t count = 0;
      for (int64_t j = 0; j < code.used[i]; ++j) count += value[i * k + j] != 0.0f;
      used[i] = count;
    });
    if (used == code.used) return;
    values = torch::stable::new_empty(given, {n_tokens, k});
    indices = torch::stable::new_empty(code.indices, {n_tokens, k});
    float* to_value = static_cast<float*>(values.data_ptr());
    const int32_t* index = static_cast<const int32_t*>(code.indices.data_ptr());
    int32_t* to_index = static_cast<int32_t*>(indices.data_ptr());
    over_rows(n_tokens, k, [&](int64_t i) {
      for (int64_t place = i * k, to = place; to < i * k + used[i]; ++place) {
        to_value[to] = value[place];
        to_index[to] = index[place];
        to += value[place] != 0.0f;
      }
    });
  }

  template <class F>
  static void over_rows(int64_t n_tokens, int64_t k, const F& f) {
    torch::stable::parallel_for(0, n_tokens, 1 + 65536 / (k + 1), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) f(i);
    });
  }
};

Tensor gather(const Tensor& values, const Tensor& indices, const Tensor& given_W) {
  require_matrix(given_W, "W");
  const Tensor W = adjacent_columns(given_W);
  const int64_t n_tokens = indices.size(0), k = indices.size(1), n = W.size(0), d = W.size(1);
  require_shape(values, "values", n_tokens, k);
  const Element element = element_of(W, "W");
  const Code code = checked_code(indices, n);
  const Tensor weights = floats(values);
  Tensor out = torch::stable::new_empty(W, {n_tokens, d}, ScalarType::Float);
  const Kernels& run = kernels();
  TokenArgs args{};
  args.plan = run.plan(element, d, 1);
  args.d = d, args.n = n, args.k = k;
  args.values = float_data(weights);
  args.indices = static_cast<const int32_t*>(code.indices.data_ptr());
  args.used = code.used.data();
  args.W = matrix(W);
  args.out = static_cast<float*>(out.data_ptr());
  if (code.ascending && dense_enough(n_tokens * k, n)) {
    // A sum is one column's, so it does not depend on how columns and tokens are shared out: as many panels as keep all
    // threads evenly busy and, if a row has too few columns for that, parts of the tokens.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t even = (args.plan.panels + threads - 1) / threads * threads;
    const int64_t panels = args.plan.panels = even < args.plan.units ? even : args.plan.units;
    const int64_t parts = (threads + panels - 1) / panels;
    const Nonzero places(weights, code, n_tokens, k);
    args.values = float_data(places.values);
    args.indices = static_cast<const int32_t*>(places.indices.data_ptr());
    args.used = places.used.data();
    const auto token = [&](int64_t part) { return n_tokens * part / parts; };
    torch::stable::parallel_for(0, panels * parts, 1, [&](int64_t first, int64_t last) {
      const Scratch<char> scratch = packing_scratch(n_tokens / parts + 1);
      for (int64_t item = first; item < last; ++item)
        run.gather_panel(element, args, item / parts, token(item % parts), token(item % parts + 1), scratch.data());
    });
  } else {
    torch::stable::parallel_for(0, n_tokens, 1, [&](int64_t first, int64_t last) {
      run.gather_rows(element, args, first, last);
    });
  }
  return out;
}

Tensor sampled(const Tensor& given_rows, const Tensor& given_W, const Tensor& indices) {
  require_matrix(given_W, "W");
  const Tensor W = adjacent_columns(given_W);
  const int64_t n_tokens = indices.size(0), k = indices.size(1), n = W.size(0), d = W.size(1);
  require_shape(given_rows, "rows", n_tokens, d);
  const Element element = element_of(W, "W");
  const Code code = checked_code(indices, n);
  const Tensor rows = floats(given_rows);
  Tensor out = torch::stable::new_empty(W, {n_tokens, k}, ScalarType::Float);
  const Kernels& run = kernels();
  TokenArgs args{};
  args.plan = run.plan(element, d, 1);
  args.d = d, args.n = n, args.k = k;
  args.indices = static_cast<const int32_t*>(code.indices.data_ptr());
  args.used = code.used.data();
  args.rows = matrix(rows);
  args.W = matrix(W);
  args.out = static_cast<float*>(out.data_ptr());
  const int64_t groups = (n_tokens + kGroupTokens - 1) / kGroupTokens;
  if (code.ascending && dense_enough(kGroupTokens * k, n)) {
    torch::stable::parallel_for(0, groups, 1, [&](int64_t first, int64_t last) {
      const Scratch<char> scratch = packing_scratch(kGroupTokens);
      for (int64_t group = first; group < last; ++group) {
        const int64_t end = (group + 1) * kGroupTokens;
        run.sampled_panels(element, args, group * kGroupTokens, end < n_tokens ? end : n_tokens, scratch.data());
      }
    });
  } else {
    torch::stable::parallel_for(0, n_tokens, 1, [&](int64_t first, int64_t last) {
      run.sampled_rows(element, args, first, last);
    });
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) {
  m.impl("gather", TORCH_BOX(&gather));
  m.impl("sampled", TORCH_BOX(&sampled));
}

}  // namespace tide
