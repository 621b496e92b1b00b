// out_ij = <rows_i, W[indices_ij]>, 0 at unused places; blocked as gather is.
#pragma once

#include "gather.h"

namespace tide {
namespace TIDE_ISA {
namespace {

template <class T, int U>
void dot_segment(const TokenArgs& a, int64_t column, int64_t first, int64_t last, int64_t begin, int64_t end,
                 const T* segment, int32_t* cursors) {
  constexpr int V = U * Unit<T>::kVectors, kWidth = U * Unit<T>::kColumns;
  for (int64_t i = first; i < last; ++i) {
    const int32_t* indices = a.indices + i * a.k;
    const int64_t used = a.used[i];
    int64_t j = cursors[i - first];
    if (j == used || indices[j] >= end) continue;
    vfloat token[V];
    load_row<V>(static_cast<const float*>(a.rows.data) + i * a.rows.stride + column, least(a.d - column, kWidth), token);
    float* out = a.out + i * a.k;
    for (; j < used && indices[j] < end; ++j) {
      vfloat row[V];
      expand<T, U>(segment + (indices[j] - begin) * kWidth, row);
      vfloat products = token[0] * row[0];
      for (int v = 1; v < V; ++v) products += token[v] * row[v];
      out[j] += sum(products);
    }
    cursors[i - first] = static_cast<int32_t>(j);
  }
}

template <class T>
void sampled_panels_of(const TokenArgs& a, int64_t first, int64_t last, void* scratch) {
  T* segment = static_cast<T*>(scratch);
  int32_t* cursors = reinterpret_cast<int32_t*>(static_cast<char*>(scratch) + kSegmentBytes);
  std::memset(a.out + first * a.k, 0, (last - first) * a.k * sizeof(float));
  for (int64_t p = 0; p < a.plan.panels; ++p) {
    std::memset(cursors, 0, (last - first) * sizeof(int32_t));
    const int64_t column = panel_column(a.plan, p), units = panel_units(a.plan, p);
    const int64_t width = units * a.plan.unit_columns, step = segment_latents<T>(width);
    for (int64_t begin = 0; begin < a.n; begin += step) {
      const int64_t end = least(begin + step, a.n);
      pack_segment(a, column, width, begin, end, segment);
      with_units<T>(units, [&](auto u) {
        dot_segment<T, decltype(u)::value>(a, column, first, last, begin, end, segment, cursors);
      });
    }
  }
}

void sampled_panels(Element element, const TokenArgs& a, int64_t first, int64_t last, void* scratch) {
  if (element == Element::bf16) return sampled_panels_of<bf16>(a, first, last, scratch);
  sampled_panels_of<float>(a, first, last, scratch);
}

template <class T>
TIDE_INLINE float dot(const float* token, const T* row, int64_t d) {
  constexpr int kUnit = Unit<T>::kColumns, V = Unit<T>::kVectors, kChains = 4;
  vfloat sums[kChains][V] = {};
  int64_t c = 0;
  for (; c + kChains * kUnit <= d; c += kChains * kUnit) {
    for (int s = 0; s < kChains; ++s) {
      vfloat wide[V];
      Unit<T>::natural(row + c + s * kUnit, wide);
      for (int v = 0; v < V; ++v) sums[s][v] += load(token + c + s * kUnit + v * kLanes) * wide[v];
    }
  }
  vfloat total = {};
  for (int s = 0; s < kChains; ++s)
    for (int v = 0; v < V; ++v) total += sums[s][v];
  float out = sum(total);
  for (; c < d; ++c) out += token[c] * to_float(row[c]);
  return out;
}

template <class T>
void sampled_rows_of(const TokenArgs& a, int64_t first, int64_t last) {
  const T* W = static_cast<const T*>(a.W.data);
  for (int64_t i = first; i < last; ++i) {
    const float* token = static_cast<const float*>(a.rows.data) + i * a.rows.stride;
    for (int64_t j = i * a.k; j < (i + 1) * a.k; ++j)
      a.out[j] = a.indices[j] < 0 ? 0.0f : dot(token, W + a.indices[j] * a.W.stride, a.d);
  }
}

void sampled_rows(Element element, const TokenArgs& a, int64_t first, int64_t last) {
  if (element == Element::bf16) return sampled_rows_of<bf16>(a, first, last);
  sampled_rows_of<float>(a, first, last);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
