// AdamW of adjacent elements: each of the four arrays is read once and written once.
#pragma once

#include <cmath>

#include "vector.h"

namespace tide {
namespace TIDE_ISA {
namespace {

TIDE_INLINE vfloat square_root(vfloat v) {
#if defined(__AVX512F__)
  return reinterpret_cast<vfloat>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<vfloat>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

template <bool kRests>
TIDE_INLINE void adamw_vector(const AdamWArgs& a, float* parameter, float* gradient, float* exp_avg,
                              float* exp_avg_sq) {
  const vfloat g = load(gradient) * splat(a.scale), m = load(exp_avg), v = load(exp_avg_sq);
  const vfloat new_m = m + (g - m) * splat(a.share1);
  const vfloat new_v = v * splat(a.beta2) + g * g * splat(a.share2);
  const vfloat size = square_root(new_v) * splat(a.root_factor) + splat(a.eps);
  const vfloat p = load(parameter) * splat(a.decay) - splat(a.step_size) * new_m / size;
  store(parameter, p);
  store(exp_avg, new_m);
  store(exp_avg_sq, new_v);
  if constexpr (kRests) store(gradient, p * splat(a.pull));
}

template <bool kRests>
void adamw_of(const AdamWArgs& a, int64_t first, int64_t last) {
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes)
    adamw_vector<kRests>(a, a.parameter + i, a.gradient + i, a.exp_avg + i, a.exp_avg_sq + i);
  if (i == last) return;
  float* const arrays[] = {a.parameter + i, a.gradient + i, a.exp_avg + i, a.exp_avg_sq + i};
  float padded[4][kLanes] = {};
  for (int j = 0; j < 4; ++j) std::memcpy(padded[j], arrays[j], (last - i) * sizeof(float));
  adamw_vector<kRests>(a, padded[0], padded[1], padded[2], padded[3]);
  for (int j = 0; j < 4; ++j) std::memcpy(arrays[j], padded[j], (last - i) * sizeof(float));
}

void adamw(const AdamWArgs& a, int64_t first, int64_t last) {
  if (a.rests) return adamw_of<true>(a, first, last);
  adamw_of<false>(a, first, last);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
