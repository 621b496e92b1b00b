// Sums over the tokens that hold a latent: scatter, and the one walk that computes all gradients of a code.
//
// A latent belongs to one thread, and its tokens are added in ascending order, so sums do not depend on the number
// of threads. Tokens are packed in panels that stay in the second-level cache; latents are walked in blocks, panel
// by panel within each.
#pragma once

#include "panels.h"
#include "squares.h"

namespace tide {
namespace TIDE_ISA {
namespace {

// out[l] += weights[p] * row of the token of p, for the latents of a block and the columns of one panel.
template <class T, int U>
void add_tokens(const Layout& layout, int64_t begin, int64_t end, const T* panel, const float* weights, float* out,
                int64_t d, int64_t columns) {
  constexpr int V = U * Unit<T>::kVectors, kWidth = U * Unit<T>::kColumns;
  const int64_t origin = layout.offsets[begin];
  for (int64_t l = begin; l < end; ++l) {
    const int64_t from = layout.offsets[l], to = layout.offsets[l + 1];
    if (from == to) continue;
    if (l + 2 < end) prefetch(out + (l + 2) * d, columns);
    vfloat sums[V];
    load_row<V>(out + l * d, columns, sums);
    for (int64_t p = from; p < to; ++p) {
      const vfloat weight = splat(weights[p - origin]);
      vfloat row[V];
      expand<T, U>(panel + static_cast<int64_t>(layout.tokens[p]) * kWidth, row);
      for (int v = 0; v < V; ++v) sums[v] += weight * row[v];
    }
    store_row<V>(out + l * d, columns, sums);
  }
}

// A latent's weights in one panel, for inner products with packed rows.
template <class T, int U>
struct Weights {
  static constexpr int V = U * Unit<T>::kVectors;
  vfloat columns[V];
  TIDE_INLINE void set(Weights& w, const T* row, int64_t valid) { expand_natural<T, U>(row, valid, w.columns); }
  // The products lane by lane; `expanded` is `row` once more.
  TIDE_INLINE vfloat times(const Weights& w, const T*, const vfloat* expanded) {
    vfloat sums = expanded[0] * w.columns[0];
    for (int v = 1; v < V; ++v) sums += expanded[v] * w.columns[v];
    return sums;
  }
};

#if defined(__AVX512BF16__)
template <int U>
struct Weights<bf16, U> {
  static constexpr int kWidth = U * Unit<bf16>::kColumns;
  bf16 packed[kWidth];
  TIDE_INLINE void set(Weights& w, const bf16* row, int64_t valid) { pack_piece(row, valid, kWidth, w.packed); }
  TIDE_INLINE vfloat times(const Weights& w, const bf16* row, const vfloat*) {
    __m512 sums = _mm512_setzero_ps();
    for (int u = 0; u < U; ++u) {
      const __m512i a = _mm512_loadu_si512(row + u * Unit<bf16>::kColumns);
      const __m512i b = _mm512_loadu_si512(w.packed + u * Unit<bf16>::kColumns);
      sums = _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    return reinterpret_cast<vfloat>(sums);
  }
};
#endif

// As add_tokens into grad_W_dec, with the inner products of the same rows of grad with W_dec beside it.
template <class T, int U>
void add_and_dot(const WalkArgs& a, int64_t begin, int64_t end, const T* panel, const float* weights, float* products,
                 int64_t column, int64_t columns) {
  constexpr int V = U * Unit<T>::kVectors, kWidth = U * Unit<T>::kColumns;
  const Layout& layout = a.layout;
  const int64_t origin = layout.offsets[begin];
  const T* W = static_cast<const T*>(a.W_dec.data) + column;
  float* out = a.grad_W_dec == nullptr ? nullptr : a.grad_W_dec + column;
  for (int64_t l = begin; l < end; ++l) {
    const int64_t from = layout.offsets[l], to = layout.offsets[l + 1];
    if (from == to) continue;
    if (l + 2 < end) {
      prefetch(W + (l + 2) * a.W_dec.stride, columns);
      if (out != nullptr) prefetch(out + (l + 2) * a.d, columns);
    }
    Weights<T, U> latent;
    Weights<T, U>::set(latent, W + l * a.W_dec.stride, columns);
    vfloat sums[V] = {};
    if (out != nullptr) load_row<V>(out + l * a.d, columns, sums);
    for (int64_t p = from; p < to; ++p) {
      const T* packed = panel + static_cast<int64_t>(layout.tokens[p]) * kWidth;
      vfloat row[V];
      expand<T, U>(packed, row);
      if (out != nullptr) {
        const vfloat weight = splat(weights[p - origin]);
        for (int v = 0; v < V; ++v) sums[v] += weight * row[v];
      }
      products[p - origin] += sum(Weights<T, U>::times(latent, packed, row));
    }
    if (out != nullptr) store_row<V>(out + l * a.d, columns, sums);
  }
}

// The end of the block that begins at `begin`: at most kBlockLatents, and kBlockPlaces unless one latent has more.
TIDE_INLINE int64_t block_end(const Layout& layout, int64_t begin, int64_t last) {
  int64_t end = begin + 1;
  while (end < last && end - begin < kBlockLatents && layout.offsets[end + 1] - layout.offsets[begin] <= kBlockPlaces)
    ++end;
  return end;
}

TIDE_INLINE int64_t place_of(const Layout& layout, int64_t p, int64_t k) { return layout.tokens[p] * k + layout.slots[p]; }

template <class T>
TIDE_INLINE void add_block(const Plan& plan, const Layout& layout, int64_t begin, int64_t end, int64_t n_tokens,
                           int64_t d, const void* packed, const float* weights, float* out) {
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    const int64_t column = panel_column(plan, panel), units = panel_units(plan, panel);
    const T* rows = static_cast<const T*>(packed) + n_tokens * column;
    with_units<T>(units, [&](auto u) {
      add_tokens<T, decltype(u)::value>(layout, begin, end, rows, weights, out + column, d,
                                        least(d - column, units * plan.unit_columns));
    });
  }
}

template <class T>
void scatter_of(const ScatterArgs& a, int64_t first, int64_t last, float* weights) {
  for (int64_t begin = first, end; begin < last; begin = end) {
    end = block_end(a.layout, begin, last);
    const int64_t origin = a.layout.offsets[begin], places = a.layout.offsets[end] - origin;
    for (int64_t p = 0; p < places; ++p) weights[p] = a.values[place_of(a.layout, origin + p, a.k)];
    add_block<T>(a.plan, a.layout, begin, end, a.n_tokens, a.d, a.rows, weights, a.out);
  }
}

void scatter(Element element, const ScatterArgs& a, int64_t first, int64_t last, float* scratch) {
  if (element == Element::bf16) return scatter_of<bf16>(a, first, last, scratch);
  scatter_of<float>(a, first, last, scratch);
}

TIDE_INLINE void start_rows(const float* W, float pull, float* out, int64_t count) {
  if (pull == 0) {
    std::memset(out, 0, count * sizeof(float));
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = pull * W[i];
  }
}

// A block's rows are then in the second-level cache, where the walk adds to them.
TIDE_INLINE void start_block(const WalkArgs& a, int64_t begin, int64_t end) {
  const int64_t origin = begin * a.d, count = (end - begin) * a.d;
  if (a.grad_W_dec != nullptr) start_rows(a.start_W_dec + origin, a.pull, a.grad_W_dec + origin, count);
  if (a.grad_W_enc != nullptr) start_rows(a.start_W_enc + origin, a.pull, a.grad_W_enc + origin, count);
  if (a.grad_b_enc != nullptr) std::memset(a.grad_b_enc + begin, 0, (end - begin) * sizeof(float));
}

// A block's gradients are still in the second-level cache.
TIDE_INLINE void add_squares(const WalkArgs& a, int64_t begin, int64_t end) {
  for (int64_t l = begin; l < end; ++l) {
    a.squares[l] = 0;
    if (a.grad_W_dec != nullptr) a.squares[l] += squares(a.grad_W_dec + l * a.d, a.d);
    if (a.grad_W_enc != nullptr) a.squares[l] += squares(a.grad_W_enc + l * a.d, a.d);
    if (a.grad_b_enc != nullptr) a.squares[l] += squares(a.grad_b_enc + l, 1);
  }
}

template <class T>
void walk_of(const WalkArgs& a, int64_t first, int64_t last, float* scratch) {
  const Layout& layout = a.layout;
  float *weights = scratch, *products = scratch + a.capacity;
  for (int64_t begin = first, end; begin < last; begin = end) {
    end = block_end(layout, begin, last);
    const int64_t origin = layout.offsets[begin], places = layout.offsets[end] - origin;
    if (a.starts) start_block(a, begin, end);
    for (int64_t p = 0; p < places; ++p) {
      const int64_t place = place_of(layout, origin + p, a.k);
      weights[p] = a.values[place];
      products[p] = a.extra == nullptr ? 0.0f : a.extra[place];
    }
    for (int64_t panel = 0; panel < a.plan.panels; ++panel) {
      const int64_t column = panel_column(a.plan, panel), units = panel_units(a.plan, panel);
      const T* rows = static_cast<const T*>(a.grad) + a.n_tokens * column;
      with_units<T>(units, [&](auto u) {
        add_and_dot<T, decltype(u)::value>(a, begin, end, rows, weights, products, column,
                                           least(a.d - column, units * a.plan.unit_columns));
      });
    }
    for (int64_t p = 0; p < places; ++p) a.grad_values[place_of(layout, origin + p, a.k)] = products[p];
    if (a.grad_b_enc != nullptr) {
      for (int64_t l = begin; l < end; ++l)
        for (int64_t p = layout.offsets[l]; p < layout.offsets[l + 1]; ++p) a.grad_b_enc[l] += products[p - origin];
    }
    if (a.grad_W_enc != nullptr) {
      for (int64_t p = 0; p < places; ++p) products[p] = rounded<T>(products[p]);  // as all operands of products
      add_block<T>(a.plan, layout, begin, end, a.n_tokens, a.d, a.x_mod, products, a.grad_W_enc);
    }
    if (a.squares != nullptr) add_squares(a, begin, end);
  }
}

void walk(Element element, const WalkArgs& a, int64_t first, int64_t last, float* scratch) {
  if (element == Element::bf16) return walk_of<bf16>(a, first, last, scratch);
  walk_of<float>(a, first, last, scratch);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
