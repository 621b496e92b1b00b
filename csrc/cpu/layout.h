// The places of a code by latent: checks, and ranges of latents over threads.
#pragma once

#include "tensors.h"

namespace tide {

inline Layout checked_layout(const Tensor& offsets, const Tensor& tokens, const Tensor& slots, int64_t n_latents,
                      int64_t n_tokens, int64_t k) {
  const bool typed = offsets.scalar_type() == ScalarType::Long && tokens.scalar_type() == ScalarType::Int &&
                     slots.scalar_type() == ScalarType::Int && offsets.is_contiguous() && tokens.is_contiguous() &&
                     slots.is_contiguous() && offsets.is_cpu() && tokens.is_cpu() && slots.is_cpu();
  require(typed, "the layout is not one that transpose made");
  require(offsets.numel() == n_latents + 1, "the layout has " + std::to_string(offsets.numel() - 1) +
                                                " latents and the weights " + std::to_string(n_latents));
  const Layout layout{static_cast<const int64_t*>(offsets.data_ptr()), static_cast<const int32_t*>(tokens.data_ptr()),
                      static_cast<const int32_t*>(slots.data_ptr())};
  const int64_t places = tokens.numel();
  bool fits = slots.numel() == places && layout.offsets[0] == 0 && layout.offsets[n_latents] == places;
  for (int64_t l = 0; l < n_latents && fits; ++l) fits = layout.offsets[l] <= layout.offsets[l + 1];
  bool inside = true;
  for (int64_t p = 0; p < places && fits; ++p)
    inside &= layout.tokens[p] >= 0 && layout.tokens[p] < n_tokens && layout.slots[p] >= 0 && layout.slots[p] < k;
  require(fits && inside, "the layout belongs to another code: transpose the indices of these values");
  return layout;
}

// f(first, last) over ranges of latents of similar cost: a fixed cost per latent, and one per place.
template <class F>
void over_latents(const Layout& layout, int64_t n_latents, const F& f) {
  const int64_t ranges = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t total = layout.offsets[n_latents] + 4 * n_latents;
  const auto start = [&](int64_t range) {
    int64_t low = 0, high = n_latents;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if ((layout.offsets[middle] + 4 * middle) * ranges < total * range) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t first, int64_t last) {
    f(start(first), last == ranges ? n_latents : start(last));
  });
}

}  // namespace tide
