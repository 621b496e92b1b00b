// Cutting rows into panels, and packing them.
#pragma once

#include "vector.h"

namespace tide {
namespace TIDE_ISA {
namespace {

constexpr int64_t kResidentBytes = 512 * 1024;  // half of a common second-level cache

template <class T>
Plan plan_for(int64_t d, int64_t rows) {
  const int64_t unit = Unit<T>::kColumns, units = most(1, (d + unit - 1) / unit);
  const int64_t fitting = kResidentBytes / (most(1, rows) * unit * static_cast<int64_t>(sizeof(T)));
  const int64_t width = most(1, least(max_units<T>(), fitting));
  return {unit, units, (units + width - 1) / width};
}

Plan plan(Element element, int64_t d, int64_t rows) {
  return element == Element::bf16 ? plan_for<bf16>(d, rows) : plan_for<float>(d, rows);
}

// `columns` of a row into a panel's row of `width`.
template <class From, class To>
TIDE_INLINE void pack_piece(const From* from, int64_t columns, int64_t width, To* to) {
  constexpr int kUnit = Unit<To>::kColumns;
  for (int64_t first = 0; first < width; first += kUnit, from += kUnit, to += kUnit) {
    if (columns - first >= kUnit) {
      Unit<To>::pack(from, to);
    } else {
      From last[kUnit] = {};
      if (columns > first) std::memcpy(last, from, (columns - first) * sizeof(From));
      Unit<To>::pack(last, to);
    }
  }
}

template <class From, class To>
void pack_rows(const Plan& plan, Matrix m, int64_t d, int64_t rows, int64_t first, int64_t last, To* packed) {
  for (int64_t row = first; row < last; ++row) {
    const From* from = static_cast<const From*>(m.data) + row * m.stride;
    for (int64_t p = 0; p < plan.panels; ++p) {
      const int64_t column = panel_column(plan, p), width = panel_units(plan, p) * plan.unit_columns;
      pack_piece(from + column, least(width, d - column), width, packed + rows * column + row * width);
    }
  }
}

void pack(Element from, Element to, const Plan& plan, Matrix m, int64_t d, int64_t rows, int64_t first, int64_t last,
          void* packed) {
  if (to == Element::bf16) {
    if (from == Element::bf16) return pack_rows<bf16>(plan, m, d, rows, first, last, static_cast<bf16*>(packed));
    return pack_rows<float>(plan, m, d, rows, first, last, static_cast<bf16*>(packed));
  }
  if (from == Element::bf16) return pack_rows<bf16>(plan, m, d, rows, first, last, static_cast<float*>(packed));
  return pack_rows<float>(plan, m, d, rows, first, last, static_cast<float*>(packed));
}

// Accumulators of one panel's columns of a row of floats; columns past the row's end are dropped.
template <int V>
TIDE_INLINE void load_row(const float* row, int64_t columns, vfloat* out) {
  if (columns >= V * kLanes) {
    for (int v = 0; v < V; ++v) out[v] = load(row + v * kLanes);
  } else {
    float copy[V * kLanes] = {};
    std::memcpy(copy, row, columns * sizeof(float));
    for (int v = 0; v < V; ++v) out[v] = load(copy + v * kLanes);
  }
}

template <int V>
TIDE_INLINE void store_row(float* row, int64_t columns, const vfloat* in) {
  if (columns >= V * kLanes) {
    for (int v = 0; v < V; ++v) store(row + v * kLanes, in[v]);
  } else {
    float copy[V * kLanes];
    for (int v = 0; v < V; ++v) store(copy + v * kLanes, in[v]);
    std::memcpy(row, copy, columns * sizeof(float));
  }
}

// As store_row, past the caches if the row is aligned: for memory that is not read soon. `finish_streams` comes after.
template <int V>
TIDE_INLINE void stream_row(float* row, int64_t columns, const vfloat* in) {
#if defined(__AVX512F__)
  if (columns >= V * kLanes && reinterpret_cast<uintptr_t>(row) % sizeof(vfloat) == 0) {
    for (int v = 0; v < V; ++v) _mm512_stream_ps(row + v * kLanes, reinterpret_cast<__m512>(in[v]));
    return;
  }
#endif
  store_row<V>(row, columns, in);
}

TIDE_INLINE void finish_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

template <class T, int U>
TIDE_INLINE void expand(const T* packed, vfloat* out) {
  for (int u = 0; u < U; ++u) Unit<T>::packed(packed + u * Unit<T>::kColumns, out + u * Unit<T>::kVectors);
}

template <class T, int U>
TIDE_INLINE void expand_natural(const T* row, int64_t columns, vfloat* out) {
  Piece<T, U> piece;
  const T* whole = Piece<T, U>::whole(piece, row, columns);
  for (int u = 0; u < U; ++u) Unit<T>::natural(whole + u * Unit<T>::kColumns, out + u * Unit<T>::kVectors);
}

template <class T>
TIDE_INLINE void prefetch(const T* p, int64_t columns) {
  for (const char *line = reinterpret_cast<const char*>(p), *end = reinterpret_cast<const char*>(p + columns);
       line < end; line += 64) {
    __builtin_prefetch(line);
  }
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
