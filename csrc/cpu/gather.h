// out_i = sum_j values_ij W[indices_ij].
//
// Where each row of W is used by several tokens (gather_panel), a segment of latents is packed, one panel of columns
// at a time, into the second-level cache, and all tokens add from there. Where not, and for codes that are not
// ascending (gather_rows), each token reads whole rows of W, four at a time.
#pragma once

#include "panels.h"

namespace tide {
namespace TIDE_ISA {
namespace {

template <class T, int U>
void add_segment(const TokenArgs& a, int64_t panel, int64_t first, int64_t last, int64_t begin, int64_t end,
                 const T* segment, int32_t* cursors) {
  constexpr int V = U * Unit<T>::kVectors, kWidth = U * Unit<T>::kColumns;
  const int64_t column = panel_column(a.plan, panel), columns = least(a.d - column, kWidth);
  for (int64_t i = first; i < last; ++i) {
    const float* values = a.values + i * a.k;
    const int32_t* indices = a.indices + i * a.k;
    const int64_t used = a.used[i];
    int64_t j = cursors[i - first];
    if (begin > 0 && (j == used || indices[j] >= end)) continue;
    float* out = a.out + i * a.d + column;
    vfloat sums[V] = {};
    if (begin > 0) load_row<V>(out, columns, sums);
    for (; j < used && indices[j] < end; ++j) {
      const vfloat value = splat(values[j]);
      vfloat row[V];
      expand<T, U>(segment + (indices[j] - begin) * kWidth, row);
      for (int v = 0; v < V; ++v) sums[v] += value * row[v];
    }
    store_row<V>(out, columns, sums);
    cursors[i - first] = static_cast<int32_t>(j);
  }
}

template <class T>
TIDE_INLINE int64_t segment_latents(int64_t width) {
  return kSegmentBytes / (width * static_cast<int64_t>(sizeof(T)));
}

// Rows begin .. end of a panel of W
template <class T>
TIDE_INLINE void pack_segment(const TokenArgs& a, int64_t column, int64_t width, int64_t begin, int64_t end, T* to) {
  const T* from = static_cast<const T*>(a.W.data) + begin * a.W.stride + column;
  const int64_t columns = least(width, a.d - column);
  for (int64_t l = begin; l < end; ++l, from += a.W.stride, to += width) {
    if (l + 8 < end) prefetch(from + 8 * a.W.stride, columns);
    pack_piece(from, columns, width, to);
  }
}

template <class T>
void gather_panel_of(const TokenArgs& a, int64_t panel, int64_t first, int64_t last, void* scratch) {
  T* segment = static_cast<T*>(scratch);
  int32_t* cursors = reinterpret_cast<int32_t*>(static_cast<char*>(scratch) + kSegmentBytes);
  std::memset(cursors, 0, (last - first) * sizeof(int32_t));
  const int64_t column = panel_column(a.plan, panel), units = panel_units(a.plan, panel);
  const int64_t width = units * a.plan.unit_columns, step = segment_latents<T>(width);
  for (int64_t begin = 0; begin < a.n; begin += step) {
    const int64_t end = least(begin + step, a.n);
    pack_segment(a, column, width, begin, end, segment);
    with_units<T>(units, [&](auto u) {
      add_segment<T, decltype(u)::value>(a, panel, first, last, begin, end, segment, cursors);
    });
  }
}

void gather_panel(Element element, const TokenArgs& a, int64_t panel, int64_t first, int64_t last, void* scratch) {
  if (element == Element::bf16) return gather_panel_of<bf16>(a, panel, first, last, scratch);
  gather_panel_of<float>(a, panel, first, last, scratch);
}

// sums += four weighted rows, in the plain order of columns
template <class T>
TIDE_INLINE void add_four(const T* const* rows, const float* weights, int64_t d, float* sums) {
  constexpr int kUnit = Unit<T>::kColumns, V = Unit<T>::kVectors;
  int64_t c = 0;
  for (; c + kUnit <= d; c += kUnit) {
    vfloat sum[V];
    for (int v = 0; v < V; ++v) sum[v] = load(sums + c + v * kLanes);
    for (int r = 0; r < 4; ++r) {
      vfloat row[V];
      Unit<T>::natural(rows[r] + c, row);
      for (int v = 0; v < V; ++v) sum[v] += splat(weights[r]) * row[v];
    }
    for (int v = 0; v < V; ++v) store(sums + c + v * kLanes, sum[v]);
  }
  for (; c < d; ++c)
    for (int r = 0; r < 4; ++r) sums[c] += weights[r] * to_float(rows[r][c]);
}

template <class T>
void gather_rows_of(const TokenArgs& a, int64_t first, int64_t last) {
  const T* W = static_cast<const T*>(a.W.data);
  for (int64_t i = first; i < last; ++i) {
    const float* values = a.values + i * a.k;
    const int32_t* indices = a.indices + i * a.k;
    float* out = a.out + i * a.d;
    std::memset(out, 0, a.d * sizeof(float));
    const T* rows[4];
    float weights[4];
    int waiting = 0;
    for (int64_t j = 0; j < a.k; ++j) {
      if (indices[j] < 0) continue;
      rows[waiting] = W + indices[j] * a.W.stride;
      weights[waiting++] = values[j];
      if (waiting == 4) {
        add_four(rows, weights, a.d, out);
        waiting = 0;
      }
    }
    for (int r = 0; r < waiting; ++r)
      for (int64_t c = 0; c < a.d; ++c) out[c] += weights[r] * to_float(rows[r][c]);
  }
}

void gather_rows(Element element, const TokenArgs& a, int64_t first, int64_t last) {
  if (element == Element::bf16) return gather_rows_of<bf16>(a, first, last);
  gather_rows_of<float>(a, first, last);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
