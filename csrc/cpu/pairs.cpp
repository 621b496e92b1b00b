// pair_differences: a merge of the two rows of each pair, whose indices ascend.
#include "tensors.h"

namespace tide {
namespace {

// The places in use of a row, which come first.
int64_t used_places(const int32_t* indices, int64_t k) {
  int64_t low = 0, high = k;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (indices[middle] >= 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One pair's differences and the sum of their squares over latents. Without branches that depend on the indices: the
// place of the smaller one is written, and the other's is written again later.
double merge_pair(const float* values, const int32_t* indices, int64_t k, float* differences) {
  const float *a = values, *b = values + k;
  const int32_t *in_a = indices, *in_b = indices + k;
  float *out_a = differences, *out_b = differences + k;
  const int64_t end_a = used_places(in_a, k), end_b = used_places(in_b, k);
  int64_t i = 0, j = 0;
  double sum = 0;
  while (i < end_a && j < end_b) {
    const int32_t first = in_a[i], second = in_b[j];
    const bool has_a = first <= second, has_b = second <= first;
    const float difference = (has_a ? a[i] : 0.0f) - (has_b ? b[j] : 0.0f);
    out_a[i] = difference;
    out_b[j] = -difference;
    sum += static_cast<double>(difference) * difference;
    i += has_a;
    j += has_b;
  }
  for (; i < end_a; ++i) sum += static_cast<double>(out_a[i] = a[i]) * a[i];
  for (; j < end_b; ++j) sum += static_cast<double>(out_b[j] = b[j]) * b[j];
  for (i = end_a; i < k; ++i) out_a[i] = 0;
  for (j = end_b; j < k; ++j) out_b[j] = 0;
  return sum;
}

std::tuple<Tensor, Tensor> pair_differences(const Tensor& given_values, const Tensor& given_indices) {
  const Tensor indices = code_indices(given_indices);
  const int64_t n_tokens = indices.size(0), k = indices.size(1);
  require_shape(given_values, "values", n_tokens, k);
  require(n_tokens % 2 == 0, "an odd number of rows is no pairs: pass both rows of each");
  const Tensor values = floats(given_values);
  Tensor differences = torch::stable::new_empty(values, {n_tokens, k});
  const float* value = float_data(values);
  const int32_t* index = static_cast<const int32_t*>(indices.data_ptr());
  float* difference = static_cast<float*>(differences.data_ptr());
  std::vector<double> sums(n_tokens / 2);
  torch::stable::parallel_for(0, n_tokens / 2, 1 + 4096 / (k + 1), [&](int64_t first, int64_t last) {
    for (int64_t pair = first; pair < last; ++pair) {
      const int64_t start = 2 * pair * k;
      sums[pair] = merge_pair(value + start, index + start, k, difference + start);
    }
  });
  double sum = 0;  // in the order of pairs, whatever the number of threads
  for (const double each : sums) sum += each;
  Tensor total = torch::stable::new_empty(values, {});
  *static_cast<float*>(total.data_ptr()) = static_cast<float>(sum);
  return {std::move(total), std::move(differences)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("pair_differences", TORCH_BOX(&pair_differences)); }

}  // namespace tide
