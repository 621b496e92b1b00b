// The places of a code by latent: a stable counting sort, by ranges of tokens.
#include "tensors.h"

namespace tide {
namespace {

std::tuple<Tensor, Tensor, Tensor> transpose(const Tensor& given, int64_t n_latents) {
  const Tensor indices = code_indices(given);
  const int64_t n_tokens = indices.size(0), k = indices.size(1);
  require(n_tokens <= INT32_MAX && k <= INT32_MAX && n_latents >= 0 && n_latents <= INT32_MAX,
          "tokens, places and latents have to be fewer than 2^31: pass smaller chunks");
  const int32_t* index = static_cast<const int32_t*>(indices.data_ptr());
  // Each range counts for itself. More ranges than threads would only cost memory; the result is the same for any.
  const int64_t threads = torch::stable::get_num_threads(), worth = 1 + n_tokens * k / (4 * n_latents + 1);
  const int64_t ranges = threads < worth ? threads : worth;
  const auto token = [&](int64_t range) { return n_tokens * range / ranges; };
  std::vector<int64_t> places(ranges * n_latents);  // counts, then the next place to fill
  std::vector<uint8_t> outside(ranges);
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      int64_t* count = places.data() + r * n_latents;
      for (int64_t p = token(r) * k; p < token(r + 1) * k; ++p) {
        if (index[p] >= 0 && index[p] < n_latents) {
          ++count[index[p]];
        } else if (index[p] != -1) {
          outside[r] = 1;
        }
      }
    }
  });
  for (const uint8_t bad : outside)
    require(!bad, "indices lie outside [-1, " + std::to_string(n_latents) + "): pass the code of these weights");
  Tensor offsets = torch::stable::new_empty(indices, {n_latents + 1}, ScalarType::Long);
  int64_t *offset = static_cast<int64_t*>(offsets.data_ptr()), total = 0;
  for (int64_t l = 0; l < n_latents; ++l) {
    offset[l] = total;
    for (int64_t r = 0; r < ranges; ++r) {
      const int64_t count = places[r * n_latents + l];
      places[r * n_latents + l] = total;
      total += count;
    }
  }
  offset[n_latents] = total;
  Tensor tokens = torch::stable::new_empty(indices, {total}, ScalarType::Int);
  Tensor slots = torch::stable::new_empty(indices, {total}, ScalarType::Int);
  int32_t *token_of = static_cast<int32_t*>(tokens.data_ptr()), *slot_of = static_cast<int32_t*>(slots.data_ptr());
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      int64_t* next = places.data() + r * n_latents;
      for (int64_t i = token(r); i < token(r + 1); ++i) {
        for (int64_t j = 0; j < k; ++j) {
          const int32_t l = index[i * k + j];
          if (l < 0) continue;
          const int64_t place = next[l]++;
          token_of[place] = static_cast<int32_t>(i);
          slot_of[place] = static_cast<int32_t>(j);
        }
      }
    }
  });
  return {std::move(offsets), std::move(tokens), std::move(slots)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("transpose", TORCH_BOX(&transpose)); }

}  // namespace tide
