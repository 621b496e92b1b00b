// add_near_places: what a sparse code adds to the gradient of its thresholds.
#include "layout.h"
#include "thresholds.h"

namespace tide {
namespace {

void add_near_places(const Tensor& grad_values, const Tensor& u, const Tensor& offsets, const Tensor& tokens,
                     const Tensor& slots, const Tensor& threshold, std::optional<Tensor> group, double bandwidth,
                     Tensor sums, Tensor near) {
  require_matrix(threshold, "threshold");
  require_matrix(u, "u");
  const int64_t n_tokens = u.size(0), k = u.size(1), n = threshold.size(1), rows = threshold.size(0);
  require_shape(grad_values, "grad_values", n_tokens, k);
  const Layout layout = checked_layout(offsets, tokens, slots, n, n_tokens, k);
  const GivenThresholds given(threshold, group, std::nullopt, n_tokens, n);
  const Tensor gradients = floats(grad_values), values = floats(u);
  const float *gradient = float_data(gradients), *value = float_data(values);
  require(near.is_cpu() && near.scalar_type() == ScalarType::Long && near.is_contiguous() && near.numel() == rows * n,
          "near has to be contiguous int64 of " + std::to_string(rows * n) + " elements");
  float* sum = target(sums, "sums", rows * n);
  int64_t* count = static_cast<int64_t*>(near.data_ptr());
  const Thresholds& t = given.args;
  const float half = static_cast<float>(bandwidth / 2);
  over_latents(layout, n, [&](int64_t first, int64_t last) {
    for (int64_t l = first; l < last; ++l) {
      for (int64_t p = layout.offsets[l]; p < layout.offsets[l + 1]; ++p) {
        const int64_t token = layout.tokens[p], place = token * k + layout.slots[p];
        const int64_t row = t.group == nullptr ? 0 : t.group[token];
        const float away = value[place] - t.data[row * t.group_stride + l * t.latent_stride];
        if (!(away < half && away > -half)) continue;
        sum[row * n + l] += gradient[place];
        ++count[row * n + l];
      }
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("add_near_places", TORCH_BOX(&add_near_places)); }

}  // namespace tide
