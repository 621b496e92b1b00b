// select and keep_top_: rows over threads.
#include <cstring>

#include "tensors.h"

namespace tide {
namespace {

struct Selection {
  Tensor values, indices;
};

Selection selection(const Tensor& given, int64_t k) {
  require_matrix(given, "pre");
  const Tensor pre = adjacent_columns(given);
  const Element element = element_of(pre, "pre", true);
  const int64_t n_tokens = pre.size(0), n = pre.size(1);
  require(n <= INT32_MAX - 64, "pre has 2^31 columns or more: int32 indices cannot name them");
  require(k >= 1 && k <= n, "k is " + std::to_string(k) + ", not from 1 to " + std::to_string(n));
  Selection out{torch::stable::new_empty(pre, {n_tokens, k}),
                torch::stable::new_empty(pre, {n_tokens, k}, ScalarType::Int)};
  const SelectArgs args{matrix(pre), n, k, out.values.data_ptr(), static_cast<int32_t*>(out.indices.data_ptr())};
  const Kernels& run = kernels();
  torch::stable::parallel_for(0, n_tokens, 1 + 16384 / n, [&](int64_t first, int64_t last) {
    const Scratch<int32_t> scratch(2 * select_scratch(n));
    run.select(element, args, first, last, scratch.data());
  });
  return out;
}

std::tuple<Tensor, Tensor> select(const Tensor& pre, int64_t k) {
  Selection out = selection(pre, k);
  return {std::move(out.values), std::move(out.indices)};
}

void keep_top_(Tensor pre, int64_t k) {
  require_matrix(pre, "pre");
  require(pre.size(1) <= 1 || pre.stride(1) == 1, "columns of pre do not lie side by side: pass a contiguous tensor");
  require(pre.size(0) <= 1 || pre.stride(0) >= pre.size(1), "rows of pre overlap: pass a contiguous tensor");
  const Selection kept = selection(pre, k);
  const int64_t n_tokens = pre.size(0), n = pre.size(1), size = pre.element_size();
  char* rows = static_cast<char*>(pre.data_ptr());
  const char* values = static_cast<const char*>(kept.values.data_ptr());
  const int32_t* indices = static_cast<const int32_t*>(kept.indices.data_ptr());
  torch::stable::parallel_for(0, n_tokens, 1 + 16384 / n, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      char* row = rows + i * pre.stride(0) * size;
      std::memset(row, 0, n * size);
      for (int64_t j = i * k; j < (i + 1) * k && indices[j] >= 0; ++j)
        std::memcpy(row + indices[j] * size, values + j * size, size);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("keep_top_", TORCH_BOX(&keep_top_));
}

}  // namespace tide
