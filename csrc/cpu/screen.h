// The k largest pre-activations of each token without a float32 product of everything.
//
// A bfloat16 product a of tokens and encoder rows differs from the float32 dot product p by at most a bound B, so an
// entry with a + B below the k-th largest p is not selected. All others, the candidates, are computed in float32 by
// `dots`, and only these values are compared and returned: the result is that of `select` on a whole matrix of `dots`,
// to the last bit.
//
// With x^ and w^ rounded, |x w - x^ w^| <= |x - x^| |w^| + |x| |w - w^| (Cauchy-Schwarz). Sums in float32 add at most
// (d + 8) 2^-23 |x| |w| each, the bias 2^-22 |b|, and numbers so small that they are flushed a constant: B_ij =
// alpha_i |w^_j| + beta_i |w_j - w^_j| + rest_j. If a norm overflows or is NaN, so is B, and the entry is a candidate.
#pragma once

#include "panels.h"
#include "select.h"

namespace tide {
namespace TIDE_ISA {
namespace {

constexpr int kTileTokens = 6, kTileVectors = kScreenVectors, kTileLatents = kTileVectors * kLanes;  // of the product's inner loop
constexpr float kFlushed = 0x1p-62f;  // squares below its square may be lost from a norm
constexpr float kLeast = 0x1p-149f;

// Columns c and c + kLanes of 2 kLanes columns share 32 bits, as in a packed unit of bfloat16.
TIDE_INLINE int64_t screen_pairs(int64_t d) { return (d + 2 * kLanes - 1) / (2 * kLanes) * kLanes; }

struct Norms {
  vfloat squares = {}, errors = {};
  TIDE_INLINE vbits add(Norms& norms, vfloat v) {
    const vbits half = narrow(v);
    const vfloat error = v - reinterpret_cast<vfloat>(half << 16);
    norms.squares += v * v;
    norms.errors += error * error;
    return half;
  }
};

// Not below the norm whose squares were summed in float32; infinite where sums of products might overflow.
TIDE_INLINE float norm_above(vfloat squares, int64_t d) {
  const float norm = __builtin_sqrtf(sum(squares)) * (1.0f + static_cast<float>(d + 64) * 0x1p-22f);
  return norm < 1e18f ? norm + kFlushed * __builtin_sqrtf(static_cast<float>(d)) : __builtin_inff();
}

// 2 kLanes columns from `column`, zeros after the last.
TIDE_INLINE vbits pair_columns(const float* row, int64_t column, int64_t d, Norms& norms) {
  const float* from = row + column;
  float last[2 * kLanes] = {};
  if (d - column < 2 * kLanes) {
    std::memcpy(last, from, (d - column) * sizeof(float));
    from = last;
  }
  const vbits low = Norms::add(norms, load(from)), high = Norms::add(norms, load(from + kLanes));
  return low | high << 16;
}

void screen_tokens(const ScreenArgs& a, int64_t first, int64_t last) {
  const int64_t pairs = screen_pairs(a.d);
  for (int64_t i = first; i < last; ++i) {
    const float* row = static_cast<const float*>(a.x.data) + i * a.x.stride;
    uint32_t* to = a.packed + i * pairs;
    Norms norms;
    bool zero = true;
    for (int64_t c = 0; c < a.d; ++c) zero &= row[c] == 0.0f;
    for (int64_t c = 0; c < a.d; c += 2 * kLanes, to += kLanes)
      *reinterpret_cast<loose_vbits*>(to) = pair_columns(row, c, a.d, norms);
    const float norm = norm_above(norms.squares, a.d), error = norm_above(norms.errors, a.d);
    const float sums = static_cast<float>(a.d + 8) * 0x1p-22f;
    // The products of a token of zeros are exact.
    a.alpha[i] = zero ? 0.0f : (error + sums * (norm + error)) * 1.001f;
    a.beta[i] = zero ? 0.0f : norm * 1.001f;
  }
}

// rows[r] lane p becomes to[p * kTileLatents + r].
TIDE_INLINE void transpose_block(vbits* rows, uint32_t* to) {
#if defined(__AVX512F__)
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = reinterpret_cast<__m512i>(rows[i]);
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
  }
  // a[4 g + c], 128-bit lane q: column 4 q + c of rows 4 g .. 4 g + 3
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    _mm512_storeu_si512(to + c * kTileLatents, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_storeu_si512(to + (8 + c) * kTileLatents, _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_storeu_si512(to + (4 + c) * kTileLatents, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_storeu_si512(to + (12 + c) * kTileLatents, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
#else
  for (int r = 0; r < kLanes; ++r)
    for (int p = 0; p < kLanes; ++p) to[p * kTileLatents + r] = rows[r][p];
#endif
}

// Rows latent .. of W, rounded and transposed: [pairs][kTileLatents]; zeros after the last. Also their bounds.
TIDE_INLINE void pack_latents(const ScreenArgs& a, int64_t latent, uint32_t* packed) {
  for (int v = 0; v < kTileVectors; ++v, latent += kLanes, packed += kLanes) {
    Norms norms[kLanes];
    const int64_t rows = most(0, least(kLanes, a.n - latent));
    const float* W = static_cast<const float*>(a.W.data) + latent * a.W.stride;
    for (int64_t c = 0; c < a.d; c += 2 * kLanes) {
      vbits block[kLanes] = {};
      for (int64_t r = 0; r < rows; ++r) {
        block[r] = pair_columns(W + r * a.W.stride, c, a.d, norms[r]);
      }
      transpose_block(block, packed + c / 2 * kTileLatents);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float norm = norm_above(norms[r].squares, a.d), error = norm_above(norms[r].errors, a.d);
      const float bias = a.bias == nullptr ? 0.0f : a.bias[latent + r];
      a.size[latent + r] = norm + error;
      a.error[latent + r] = error;
      a.rest[latent + r] = __builtin_fabsf(bias) * 0x1p-21f + static_cast<float>(a.d) * 0x1p-120f;
    }
  }
}

TIDE_INLINE vfloat pair_products(vfloat sums, uint32_t x, vbits w) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<vfloat>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(w),
                                                   reinterpret_cast<__m512bh>(_mm512_set1_epi32(x))));
#else
  const vbits both = vbits{} + x;
  sums += reinterpret_cast<vfloat>(both << 16) * reinterpret_cast<vfloat>(w << 16);
  return sums + reinterpret_cast<vfloat>(both & 0xffff0000u) * reinterpret_cast<vfloat>(w & 0xffff0000u);
#endif
}

// Adds the products of M tokens with a tile of latents over the pairs first .. last to sums [tokens][kTileLatents].
template <int M>
void screen_tile(const ScreenArgs& a, int64_t token, int64_t first, int64_t last, const uint32_t* packed,
                 float* tile_sums) {
  const int64_t pairs = screen_pairs(a.d);
  const uint32_t* x = a.packed + token * pairs;
  tile_sums += token * kTileLatents;
  vfloat sums[M][kTileVectors] = {};
  for (int m = 0; m < M && first > 0; ++m)
    for (int v = 0; v < kTileVectors; ++v) sums[m][v] = load(tile_sums + m * kTileLatents + v * kLanes);
  packed += first * kTileLatents;
  for (int64_t p = first; p < last; ++p, packed += kTileLatents) {
    vbits w[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) w[v] = *reinterpret_cast<const loose_vbits*>(packed + v * kLanes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < kTileVectors; ++v) sums[m][v] = pair_products(sums[m][v], x[m * pairs + p], w[v]);
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < kTileVectors; ++v) store(tile_sums + m * kTileLatents + v * kLanes, sums[m][v]);
}

// Of a tile's weights, in the first-level cache.
constexpr int64_t kTilePairs = 16 * 1024 / (kTileLatents * 4);

// Tiles first .. last of the latents; scratch: (most_pairs(d) + n_tokens) * kTileLatents integers.
void screen_product(const ScreenArgs& a, int64_t first, int64_t last, uint32_t* packed) {
  const int64_t pairs = screen_pairs(a.d);
  float* sums = reinterpret_cast<float*>(packed + pairs * kTileLatents);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t latent = tile * kTileLatents, columns = least(kTileLatents, a.n - latent);
    pack_latents(a, latent, packed);
    for (int64_t p = 0; p < pairs; p += kTilePairs) {
      const int64_t end = least(p + kTilePairs, pairs);
      int64_t i = 0;
      for (; i + kTileTokens <= a.n_tokens; i += kTileTokens) screen_tile<kTileTokens>(a, i, p, end, packed, sums);
      for (; i < a.n_tokens; ++i) screen_tile<1>(a, i, p, end, packed, sums);
    }
    vfloat bias[kTileVectors] = {};
    if (a.bias != nullptr) load_row<kTileVectors>(a.bias + latent, columns, bias);
    for (int64_t i = 0; i < a.n_tokens; ++i) {
      uint16_t row[kTileLatents];
      for (int v = 0; v < kTileVectors; ++v) {
        const vbits half = narrow(load(sums + i * kTileLatents + v * kLanes) + bias[v]);
        *reinterpret_cast<loose_vhalf*>(row + v * kLanes) = __builtin_convertvector(half, vhalf);
      }
      std::memcpy(a.product + i * a.stride + latent, row, columns * sizeof(uint16_t));
    }
  }
}

// The least of k values as select leaves them, 0 if there are fewer. NaN counts as largest.
template <Element E>
TIDE_INLINE float least_selected(const typename Key<E>::Bits* values, const int32_t* indices, int64_t k) {
  if (indices[k - 1] < 0) return 0.0f;
  int32_t least_key = Key<E>::kInfinity + 1;
  for (int64_t j = 0; j < k; ++j) {
    const int32_t key = key_of<E>(values[j]);
    least_key = key < least_key ? key : least_key;
  }
  const int32_t bits = static_cast<int32_t>(bits_of<E>(least_key)) << (E == Element::bf16 ? 16 : 0);
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// No p of the entries from j is above this. They were rounded to bfloat16, which moves them by at most 2^-8.
TIDE_INLINE vfloat upper(const ScreenArgs& a, vfloat product, int64_t j, vfloat alpha, vfloat beta, vfloat rest) {
  const vfloat size = reinterpret_cast<vfloat>(reinterpret_cast<vbits>(product) & 0x7fffffffu);
  const vfloat bound = alpha * load(a.size + j) + beta * load(a.error + j) + rest * load(a.rest + j);
  return product + (size * 0x1.01p-8f + bound);
}

// The columns of row i that may be selected if the k-th value is not below `cut`; returns how many, or -1 if more than
// fit.
TIDE_INLINE int64_t candidates(const ScreenArgs& a, int64_t i, float cut, int32_t* columns) {
  const bf16* product = reinterpret_cast<const bf16*>(a.product + i * a.stride);
  const vfloat alpha = splat(a.alpha[i]), beta = splat(a.beta[i]), rest = splat(a.beta[i] == 0.0f ? 0.0f : 1.0f);
  const int64_t room = a.capacity - kLanes;  // whole vectors are written
  int64_t count = 0;
  for (int64_t j = 0; j < a.n; j += kLanes) {  // the arrays are padded to whole vectors
    if (count > room) return -1;
    const vfloat above = upper(a, widen(load_half(product + j)), j, alpha, beta, rest);
#if defined(__AVX512F__)
    const __mmask16 lanes = a.n - j >= kLanes ? 0xffff : static_cast<__mmask16>((1u << (a.n - j)) - 1);
    const __mmask16 keep =
        _mm512_mask_cmp_ps_mask(lanes, reinterpret_cast<__m512>(above), _mm512_set1_ps(cut), _CMP_NLT_UQ);
    const __m512i column = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(j)),
                                            _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(columns + count, _mm512_maskz_compress_epi32(keep, column));
    count += __builtin_popcount(keep);
#else
    for (int lane = 0; lane < kLanes && j + lane < a.n; ++lane) {
      columns[count] = static_cast<int32_t>(j + lane);
      count += !(above[lane] < cut);
    }
#endif
  }
  return count;
}

// Candidates of tokens first .. last. scratch: 2 * select_scratch(n) integers, and k.
void screen_rows(const ScreenArgs& a, int64_t first, int64_t last, int32_t* scratch) {
  int16_t* values = reinterpret_cast<int16_t*>(scratch + 2 * select_scratch(a.n));
  for (int64_t i = first; i < last; ++i) {
    int32_t* indices = a.indices + i * a.k;
    select(Element::bf16, {{a.product + i * a.stride, a.stride}, a.n, a.k, values, indices}, 0, 1, scratch);
    const float kth = least_selected<Element::bf16>(values, indices, a.k);
    // Errors are far below their bounds, so the k-th float32 value is expected close to the approximate one. Should it
    // be below the cut after all, the token is done over.
    const int32_t one = most(0, indices[a.k / 2]);
    const float margin = (a.alpha[i] * a.size[one] + a.beta[i] * a.error[one]) * 0.0625f + kth * 0x1p-8f;
    const float cut = margin < __builtin_inff() ? kth - margin : kth;
    a.cut[i] = cut < kLeast ? kLeast : cut;
    a.used[i] = static_cast<int32_t>(candidates(a, i, a.cut[i], a.columns + i * a.capacity));
  }
}

// Float32 dot products of one token with R rows: the only ones that are returned, so their order of summation is one.
template <int R>
TIDE_INLINE void dots(const float* x, const float* const* rows, int64_t d, float* out) {
  vfloat sums[R][2] = {};
  int64_t c = 0;
  for (; c + 2 * kLanes <= d; c += 2 * kLanes) {
    for (int half = 0; half < 2; ++half) {
      const vfloat token = load(x + c + half * kLanes);
      for (int r = 0; r < R; ++r) sums[r][half] += token * load(rows[r] + c + half * kLanes);
    }
  }
  for (int r = 0; r < R; ++r) {
    float last[2][2 * kLanes] = {};
    if (c < d) {
      std::memcpy(last[0], x + c, (d - c) * sizeof(float));
      std::memcpy(last[1], rows[r] + c, (d - c) * sizeof(float));
      for (int half = 0; half < 2; ++half) sums[r][half] += load(last[0] + half * kLanes) * load(last[1] + half * kLanes);
    }
    out[r] = sum(sums[r][0] + sums[r][1]);
  }
}

// exact[j] for the places from .. to of a row of candidates
TIDE_INLINE void exact_places(const ScreenArgs& a, const float* x, const int32_t* columns, int64_t from, int64_t to,
                              float* exact) {
  const float* W = static_cast<const float*>(a.W.data);
  const float* rows[4];
  for (; from + 4 <= to; from += 4) {
    for (int r = 0; r < 4; ++r) rows[r] = W + columns[from + r] * a.W.stride;
    dots<4>(x, rows, a.d, exact + from);
  }
  for (; from < to; ++from) {
    rows[0] = W + columns[from] * a.W.stride;
    dots<1>(x, rows, a.d, exact + from);
  }
}

constexpr int64_t kExactBytes = 384 * 1024;  // of rows of W, which stay in the second-level cache

// Float32 values of the candidates among latents first .. last; scratch: an integer per token.
void screen_exact(const ScreenArgs& a, int64_t first, int64_t last, int32_t* cursors) {
  for (int64_t i = 0; i < a.n_tokens; ++i) {
    const int32_t* columns = a.columns + i * a.capacity;
    int64_t low = 0, high = most(0, a.used[i]);
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (columns[middle] < first) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    cursors[i] = static_cast<int32_t>(low);
  }
  const int64_t step = most(4, kExactBytes / (a.d * static_cast<int64_t>(sizeof(float))));
  for (int64_t begin = first; begin < last; begin += step) {
    const int64_t end = least(begin + step, last);
    for (int64_t i = 0; i < a.n_tokens; ++i) {
      const int32_t* columns = a.columns + i * a.capacity;
      int64_t j = cursors[i];
      while (j < a.used[i] && columns[j] < end) ++j;
      exact_places(a, static_cast<const float*>(a.x.data) + i * a.x.stride, columns, cursors[i], j,
                   a.exact + i * a.capacity);
      cursors[i] = static_cast<int32_t>(j);
    }
  }
}

// The selection of tokens first .. last from the float32 values of their candidates, or of all latents where there are
// too many candidates or the cut was too high. scratch: 2 * select_scratch(n) integers, and n.
void screen_finish(const ScreenArgs& a, int64_t first, int64_t last, int32_t* scratch) {
  float* all = reinterpret_cast<float*>(scratch + 2 * select_scratch(a.n));
  for (int64_t i = first; i < last; ++i) {
    float* values = a.values + i * a.k;
    int32_t* indices = a.indices + i * a.k;
    if (a.used[i] >= 0) {
      float* exact = a.exact + i * a.capacity;
      const int32_t* columns = a.columns + i * a.capacity;
      for (int64_t j = 0; j < a.used[i] && a.bias != nullptr; ++j) exact[j] += a.bias[columns[j]];
      select(Element::f32, {{exact, a.capacity}, a.used[i], a.k, values, indices}, 0, 1, scratch);
      for (int64_t j = 0; j < a.k && indices[j] >= 0; ++j) indices[j] = columns[indices[j]];
      const float least = least_selected<Element::f32>(reinterpret_cast<const int32_t*>(values), indices, a.k);
      if (a.cut[i] == kLeast || !(least < a.cut[i])) continue;
    }
    const float* W = static_cast<const float*>(a.W.data);
    const float* token = static_cast<const float*>(a.x.data) + i * a.x.stride;
    for (int64_t l = 0; l < a.n; ++l) {
      const float* row = W + l * a.W.stride;
      dots<1>(token, &row, a.d, all + l);
      if (a.bias != nullptr) all[l] += a.bias[l];
    }
    select(Element::f32, {{all, a.n}, a.n, a.k, values, indices}, 0, 1, scratch);
  }
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
