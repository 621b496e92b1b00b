// AdamW of adjacent elements, in one pass over its four arrays.
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

TIDE_INLINE void adamw_vector(const AdamWArgs& a, float* parameter, const float* gradient, float* exp_avg,
                              float* exp_avg_sq) {
  const vfloat g = load(gradient) * splat(a.scale), m = load(exp_avg), v = load(exp_avg_sq);
  const vfloat new_m = m + (g - m) * splat(a.share1);
  const vfloat new_v = v * splat(a.beta2) + g * g * splat(a.share2);
  const vfloat size = square_root(new_v) * splat(a.root_factor) + splat(a.eps);
  store(parameter, load(parameter) * splat(a.decay) - splat(a.step_size) * new_m / size);
  store(exp_avg, new_m);
  store(exp_avg_sq, new_v);
}

void adamw(const AdamWArgs& a, int64_t first, int64_t last) {
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes)
    adamw_vector(a, a.parameter + i, a.gradient + i, a.exp_avg + i, a.exp_avg_sq + i);
  if (i == last) return;
  const size_t rest = (last - i) * sizeof(float);
  float p[kLanes] = {}, g[kLanes] = {}, m[kLanes] = {}, v[kLanes] = {};
  std::memcpy(p, a.parameter + i, rest);
  std::memcpy(g, a.gradient + i, rest);
  std::memcpy(m, a.exp_avg + i, rest);
  std::memcpy(v, a.exp_avg_sq + i, rest);
  adamw_vector(a, p, g, m, v);
  std::memcpy(a.parameter + i, p, rest);
  std::memcpy(a.exp_avg + i, m, rest);
  std::memcpy(a.exp_avg_sq + i, v, rest);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
