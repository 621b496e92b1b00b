// Sums over the tokens that hold a latent: scatter, and the one walk that computes all gradients of a code.
//
// A latent belongs to one thread, and its tokens are added in ascending order, so sums do not depend on the number
// of threads. Tokens are packed in panels that stay in the second-level cache; latents are walked in blocks, panel
// by panel within each.
#pragma once

#include "panels.h"

namespace tide {
namespace TIDE_ISA {
namespace {

// The columns of one panel of a gradient [n, d] that a walk finishes, row by row.
struct Rows {
  float* out;
  int64_t d;
  bool replaces;    // what rows hold is replaced: they begin as start * W, or as 0 without W
  const float* W;
  float start;
  double* squares;  // [n] or null: those of a finished row are added

  bool has_work_without_tokens() const { return replaces || squares != nullptr; }
};

template <int V>
TIDE_INLINE void begin_row(const Rows& rows, int64_t l, int64_t columns, vfloat* sums) {
  if (!rows.replaces) return load_row<V>(rows.out + l * rows.d, columns, sums);
  for (int v = 0; v < V; ++v) sums[v] = vfloat{};
  if (rows.W == nullptr) return;
  load_row<V>(rows.W + l * rows.d, columns, sums);
  for (int v = 0; v < V; ++v) sums[v] *= splat(rows.start);
}

template <int V>
TIDE_INLINE void finish_row(const Rows& rows, int64_t l, int64_t columns, const vfloat* sums) {
  if (rows.squares != nullptr) {
    vfloat squares = {};
    for (int v = 0; v < V; ++v) squares += sums[v] * sums[v];
    rows.squares[l] += sum(squares);
  }
  float* out = rows.out + l * rows.d;
  return rows.replaces ? stream_row<V>(out, columns, sums) : store_row<V>(out, columns, sums);
}

TIDE_INLINE void prefetch_row(const Rows& rows, int64_t l, int64_t columns) {
  const float* from = rows.replaces ? rows.W : rows.out;
  if (from != nullptr) prefetch(from + l * rows.d, columns);
}

// rows[l] += weights[p] * row of the token of p, for the latents of a block and the columns of one panel.
template <class T, int U>
void add_tokens(const Layout& layout, int64_t begin, int64_t end, const T* panel, const float* weights,
                const Rows& rows, int64_t columns) {
  constexpr int V = U * Unit<T>::kVectors, kWidth = U * Unit<T>::kColumns;
  const int64_t origin = layout.offsets[begin];
  for (int64_t l = begin; l < end; ++l) {
    const int64_t from = layout.offsets[l], to = layout.offsets[l + 1];
    if (from == to && !rows.has_work_without_tokens()) continue;
    if (l + 2 < end) prefetch_row(rows, l + 2, columns);
    vfloat sums[V];
    begin_row<V>(rows, l, columns, sums);
    for (int64_t p = from; p < to; ++p) {
      const vfloat weight = splat(weights[p - origin]);
      vfloat row[V];
      expand<T, U>(panel + static_cast<int64_t>(layout.tokens[p]) * kWidth, row);
      for (int v = 0; v < V; ++v) sums[v] += weight * row[v];
    }
    finish_row<V>(rows, l, columns, sums);
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

// As add_tokens into the rows of grad_W_dec, null if that is not wanted, with the inner products of the same rows of
// grad with W_dec beside it.
template <class T, int U>
void add_and_dot(const WalkArgs& a, int64_t begin, int64_t end, const T* panel, const float* weights, float* products,
                 const Rows* rows, int64_t column, int64_t columns) {
  constexpr int V = U * Unit<T>::kVectors, kWidth = U * Unit<T>::kColumns;
  const Layout& layout = a.layout;
  const int64_t origin = layout.offsets[begin];
  const T* W = static_cast<const T*>(a.W_dec.data) + column;
  for (int64_t l = begin; l < end; ++l) {
    const int64_t from = layout.offsets[l], to = layout.offsets[l + 1];
    if (from == to && (rows == nullptr || !rows->has_work_without_tokens())) continue;
    if (l + 2 < end) {
      prefetch(W + (l + 2) * a.W_dec.stride, columns);
      if (rows != nullptr) prefetch_row(*rows, l + 2, columns);
    }
    Weights<T, U> latent;
    if (from != to) Weights<T, U>::set(latent, W + l * a.W_dec.stride, columns);
    vfloat sums[V];
    if (rows != nullptr) begin_row<V>(*rows, l, columns, sums);
    for (int64_t p = from; p < to; ++p) {
      const T* packed = panel + static_cast<int64_t>(layout.tokens[p]) * kWidth;
      vfloat row[V];
      expand<T, U>(packed, row);
      if (rows != nullptr) {
        const vfloat weight = splat(weights[p - origin]);
        for (int v = 0; v < V; ++v) sums[v] += weight * row[v];
      }
      products[p - origin] += sum(Weights<T, U>::times(latent, packed, row));
    }
    if (rows != nullptr) finish_row<V>(*rows, l, columns, sums);
  }
}

// The end of the block that begins at `begin`: at most kBlockLatents, and kBlockPlaces unless one latent has more.
TIDE_INLINE int64_t block_end(const Layout& layout, int64_t begin, int64_t last) {
  int64_t end = begin + 1;
  while (end < last && end - begin < kBlockLatents && layout.offsets[end + 1] - layout.offsets[begin] <= kBlockPlaces)
    ++end;
  return end;
}

TIDE_INLINE int64_t place_of(const Layout& layout, int64_t p, int64_t k) {
  return layout.tokens[p] * k + layout.slots[p];
}

TIDE_INLINE Rows panel_of(const Rows& rows, int64_t column) {
  Rows panel = rows;
  panel.out += column;
  if (panel.W != nullptr) panel.W += column;
  return panel;
}

// f(units, packed rows of the panel, its first column, its columns) for all panels
template <class T, class F>
TIDE_INLINE void over_panels(const Plan& plan, int64_t n_tokens, int64_t d, const void* packed, const F& f) {
  for (int64_t panel = 0; panel < plan.panels; ++panel) {
    const int64_t column = panel_column(plan, panel), units = panel_units(plan, panel);
    const T* tokens = static_cast<const T*>(packed) + n_tokens * column;
    with_units<T>(units, [&](auto u) { f(u, tokens, column, least(d - column, units * plan.unit_columns)); });
  }
}

template <class T>
TIDE_INLINE void add_block(const Plan& plan, const Layout& layout, int64_t begin, int64_t end, int64_t n_tokens,
                           const void* packed, const float* weights, const Rows& rows) {
  over_panels<T>(plan, n_tokens, rows.d, packed, [&](auto u, const T* tokens, int64_t column, int64_t columns) {
    add_tokens<T, decltype(u)::value>(layout, begin, end, tokens, weights, panel_of(rows, column), columns);
  });
}

template <class T>
void scatter_of(const ScatterArgs& a, int64_t first, int64_t last, float* weights) {
  const Rows rows{a.out, a.d, false, nullptr, 0, nullptr};
  for (int64_t begin = first, end; begin < last; begin = end) {
    end = block_end(a.layout, begin, last);
    const int64_t origin = a.layout.offsets[begin], places = a.layout.offsets[end] - origin;
    for (int64_t p = 0; p < places; ++p) weights[p] = a.values[place_of(a.layout, origin + p, a.k)];
    add_block<T>(a.plan, a.layout, begin, end, a.n_tokens, a.rows, weights, rows);
  }
}

void scatter(Element element, const ScatterArgs& a, int64_t first, int64_t last, float* scratch) {
  if (element == Element::bf16) return scatter_of<bf16>(a, first, last, scratch);
  scatter_of<float>(a, first, last, scratch);
}

TIDE_INLINE Rows rows_from(const Rows& rows, int64_t latent) {
  Rows part = rows;
  part.out += latent * rows.d;
  if (part.W != nullptr) part.W += latent * rows.d;
  if (part.squares != nullptr) part.squares += latent;
  return part;
}

// The places of a block that pass gradients to the encoder: those whose values are not 0. `weights` become theirs.
struct Active {
  int64_t offsets[kBlockLatents + 1];

  TIDE_INLINE Layout of_block(Active& active, const Layout& layout, int64_t begin, int64_t end, const float* values,
                              float* weights, int32_t* tokens) {
    const int64_t origin = layout.offsets[begin];
    int64_t count = 0;
    for (int64_t l = begin; l < end; ++l) {
      active.offsets[l - begin] = count;
      for (int64_t p = layout.offsets[l]; p < layout.offsets[l + 1]; ++p) {
        weights[count] = weights[p - origin];
        tokens[count] = layout.tokens[p];
        count += values[p - origin] != 0.0f;
      }
    }
    active.offsets[end - begin] = count;
    return {active.offsets, tokens, nullptr};
  }
};

// The gradient of b_enc for the latents of a block, from the gradients of their places.
TIDE_INLINE void add_bias(const WalkArgs& a, const Layout& block, int64_t begin, int64_t end, const float* grad_places) {
  for (int64_t l = begin; l < end; ++l) {
    float total = a.replaces ? 0.0f : a.grad_b_enc[l];
    for (int64_t p = block.offsets[l - begin]; p < block.offsets[l - begin + 1]; ++p) total += grad_places[p];
    a.grad_b_enc[l] = total;
    if (a.squares != nullptr) a.squares[l] += static_cast<double>(total) * total;
  }
}

template <class T>
void walk_of(const WalkArgs& a, int64_t first, int64_t last, float* scratch) {
  const Layout& layout = a.layout;
  float *weights = scratch, *products = scratch + a.capacity;
  int32_t* active_tokens = reinterpret_cast<int32_t*>(scratch + 2 * a.capacity);
  const Rows dec{a.grad_W_dec, a.d, a.replaces, a.start_W_dec, a.start, a.squares};
  const Rows enc{a.grad_W_enc, a.d, a.replaces, a.start_W_enc, a.start, a.squares};
  for (int64_t begin = first, end; begin < last; begin = end) {
    end = block_end(layout, begin, last);
    const int64_t origin = layout.offsets[begin], places = layout.offsets[end] - origin;
    for (int64_t p = 0; p < places; ++p) {
      const int64_t place = place_of(layout, origin + p, a.k);
      weights[p] = a.values[place];
      products[p] = a.extra == nullptr ? 0.0f : a.extra[place];
    }
    over_panels<T>(a.plan, a.n_tokens, a.d, a.grad, [&](auto u, const T* tokens, int64_t column, int64_t columns) {
      const bool wanted = a.grad_W_dec != nullptr;
      const Rows rows = wanted ? panel_of(dec, column) : dec;
      add_and_dot<T, decltype(u)::value>(a, begin, end, tokens, weights, products, wanted ? &rows : nullptr, column,
                                         columns);
    });
    for (int64_t p = 0; p < places; ++p) a.grad_values[place_of(layout, origin + p, a.k)] = products[p];
    if (a.grad_b_enc == nullptr && a.grad_W_enc == nullptr) continue;
    Active active;
    const Layout block = Active::of_block(active, layout, begin, end, weights, products, active_tokens);
    if (a.grad_b_enc != nullptr) add_bias(a, block, begin, end, products);
    if (a.grad_W_enc != nullptr) {
      const int64_t passing = block.offsets[end - begin];
      for (int64_t p = 0; p < passing; ++p) products[p] = rounded<T>(products[p]);  // as all operands of products
      add_block<T>(a.plan, block, 0, end - begin, a.n_tokens, a.x_mod, products, rows_from(enc, begin));
    }
  }
  if (a.replaces) finish_streams();
}

void walk(Element element, const WalkArgs& a, int64_t first, int64_t last, float* scratch) {
  if (element == Element::bf16) return walk_of<bf16>(a, first, last, scratch);
  walk_of<float>(a, first, last, scratch);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
