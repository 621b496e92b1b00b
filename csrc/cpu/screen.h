// The k largest pre-activations of each token without a float32 product of everything.
//
// A product a of tokens and encoder rows in int8 or bfloat16 differs from the float32 dot product p by at most a bound
// B, so an entry with a + B below the k-th largest p is not selected. All others, the candidates, are computed in
// float32 by `dots`, and only these values are compared and returned: the result is that of `select` on a whole matrix
// of `dots`, to the last bit.
//
// With x^ and w^ rounded, |x w - x^ w^| <= |x - x^| |w^| + |x| |w - w^| (Cauchy-Schwarz). Sums in float32 add at most
// (d + 8) 2^-23 |x| |w| each, more than scaling exact sums of int8 does: B_ij = alpha_i |w^_j| + beta_i |w_j - w^_j|.
// Norms include what is lost of numbers so small that they are flushed. If a norm overflows or is NaN, so is B, and the
// entry is a candidate. The sum with a bias is rounded by at most 2^-24 of it, for which `upper` has room.
//
// int8 is twice as fast as bfloat16; its bound is about five times as wide, more where a row has outliers.
#pragma once

#include <type_traits>

#include "panels.h"
#include "select.h"

namespace tide {
namespace TIDE_ISA {
namespace {

// Of the product's inner loop.
constexpr int kTileTokens = 6, kTileVectors = kScreenVectors, kTileLatents = kTileVectors * kLanes;
// Of tokens in float32, and of a tile's rows of W: so much of them stays in the first-level cache.
constexpr int kPanelVectors = 8;
constexpr int64_t kPanelColumns = kPanelVectors * kLanes;
constexpr float kFlushed = 0x1p-62f;  // squares below its square may be lost from a norm
constexpr float kLeast = 0x1p-149f;

// NaN counts as largest.
TIDE_INLINE float largest_magnitude(const float* row, int64_t d) {
  vbits largest = {};
  const auto take = [&](const float* from) {
    const vbits bits = load_words(reinterpret_cast<const uint32_t*>(from)) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  };
  int64_t c = 0;
  for (; c + kLanes <= d; c += kLanes) take(row + c);
  float last[kLanes] = {};
  std::memcpy(last, row + c, (d - c) * sizeof(float));
  take(last);
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits = largest[lane] > bits ? largest[lane] : bits;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// The numbers of a screen: of how many columns 32 bits hold one each, their products' sums, and how a row is rounded.
// Columns c, c + kLanes, .. of kColumns kLanes columns share 32 bits.
struct Halves {  // bfloat16
  using Sums = vfloat;
  static constexpr int kColumns = 2;
  TIDE_INLINE Halves of_row(const float*, int64_t) { return {}; }
  TIDE_INLINE vbits round(const Halves&, vfloat v, vfloat* rounded) {
    const vbits half = narrow(v);
    *rounded = reinterpret_cast<vfloat>(half << 16);
    return half;
  }
  TIDE_INLINE Sums products(Sums sums, uint32_t x, vbits w) {
#if defined(__AVX512BF16__)
    return reinterpret_cast<vfloat>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(w),
                                                     reinterpret_cast<__m512bh>(_mm512_set1_epi32(x))));
#else
    const vbits both = vbits{} + x;
    sums += reinterpret_cast<vfloat>(both << 16) * reinterpret_cast<vfloat>(w << 16);
    return sums + reinterpret_cast<vfloat>(both & 0xffff0000u) * reinterpret_cast<vfloat>(w & 0xffff0000u);
#endif
  }
};

struct Bytes {  // integers from -127 to 127, times the row's scale; those of latents are stored with kOffset added
  using Sums = vint;
  static constexpr int kColumns = 4;
  static constexpr uint32_t kOffset = 128;
  float scale, inverse;
  // A row of very small or large numbers becomes zeros: all of it is error then.
  TIDE_INLINE Bytes of_row(const float* row, int64_t d) {
    const float largest = largest_magnitude(row, d);
    return largest > 0x1p-60f && largest < 0x1p60f ? Bytes{largest / 127, 127 / largest} : Bytes{0.0f, 0.0f};
  }
  TIDE_INLINE vbits round(const Bytes& row, vfloat v, vfloat* rounded) {
    constexpr float kShift = 0x1.8p23f;  // sums with it are rounded to integers, which their lower bits hold
    const vfloat shifted = v * row.inverse + kShift;
    *rounded = (shifted - kShift) * row.scale;
    return reinterpret_cast<vbits>(shifted) & 0xff;
  }
  TIDE_INLINE Sums products(Sums sums, uint32_t x, vbits w) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<vint>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(w),
                                                      _mm512_set1_epi32(x)));
#else
    for (int c = 0; c < kColumns; ++c)
      sums += static_cast<int32_t>(static_cast<int8_t>(x >> 8 * c)) * reinterpret_cast<vint>(w >> 8 * c & 0xff);
    return sums;
#endif
  }
};

// 32-bit words of a packed row
template <class T>
TIDE_INLINE int64_t screen_words(int64_t d) {
  return (d + T::kColumns * kLanes - 1) / (T::kColumns * kLanes) * kLanes;
}

struct Norms {
  vfloat squares = {}, errors = {};
};

// Not below the norm whose squares were summed in float32; infinite where sums of products might overflow.
TIDE_INLINE float norm_above(vfloat squares, int64_t d) {
  const float norm = __builtin_sqrtf(sum(squares)) * (1.0f + static_cast<float>(d + 64) * 0x1p-22f);
  return norm < 1e18f ? norm + kFlushed * __builtin_sqrtf(static_cast<float>(d)) : __builtin_inff();
}

// kLanes words from `column`, zeros after the last.
template <class T>
TIDE_INLINE vbits round_columns(const T& numbers, const float* row, int64_t column, int64_t d, Norms& norms) {
  const float* from = row + column;
  float last[T::kColumns * kLanes] = {};
  if (d - column < T::kColumns * kLanes) {
    std::memcpy(last, from, (d - column) * sizeof(float));
    from = last;
  }
  vbits words = {};
  for (int c = 0; c < T::kColumns; ++c) {
    const vfloat v = load(from + c * kLanes);
    vfloat rounded;
    words |= T::round(numbers, v, &rounded) << (32 / T::kColumns * c);
    const vfloat error = v - rounded;
    norms.squares += v * v;
    norms.errors += error * error;
  }
  return words;
}

template <class T>
void screen_tokens_of(const ScreenArgs& a, int64_t first, int64_t last) {
  const int64_t words = screen_words<T>(a.d);
  for (int64_t i = first; i < last; ++i) {
    const float* row = static_cast<const float*>(a.x.data) + i * a.x.stride;
    uint32_t* to = a.packed + i * words;
    Norms norms;
    const bool zero = largest_magnitude(row, a.d) == 0.0f;
    const T numbers = T::of_row(row, a.d);
    for (int64_t w = 0; w < words; w += kLanes)
      *reinterpret_cast<loose_vbits*>(to + w) = round_columns(numbers, row, w * T::kColumns, a.d, norms);
    if constexpr (std::is_same_v<T, Bytes>) {
      vint sums = {};
      for (int64_t w = 0; w < words; ++w) sums = Bytes::products(sums, to[w], vbits{} + Bytes::kOffset * 0x01010101u);
      a.scale[i] = numbers.scale;
      a.offset[i] = -sums[0];
    }
    for (int64_t c = 0; a.panels != nullptr && c < a.d; c += kPanelColumns)
      pack_piece(row + c, least(kPanelColumns, a.d - c), kPanelColumns, a.panels + c * a.n_tokens + i * kPanelColumns);
    const float norm = norm_above(norms.squares, a.d), error = norm_above(norms.errors, a.d);
    const float sums = static_cast<float>(a.d + 8) * 0x1p-22f;
    // The products of a token of zeros are exact.
    a.alpha[i] = zero ? 0.0f : (error + sums * (norm + error)) * 1.001f;
    a.beta[i] = zero ? 0.0f : norm * 1.001f;
  }
}

void screen_tokens(const ScreenArgs& a, int64_t first, int64_t last) {
  if (a.screen == Screen::int8) return screen_tokens_of<Bytes>(a, first, last);
  screen_tokens_of<Halves>(a, first, last);
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

// Rows latent .. of W, rounded and transposed: [words][kTileLatents]; zeros after the last. Also their bounds and
// scales.
template <class T>
TIDE_INLINE void pack_latents(const ScreenArgs& a, int64_t latent, uint32_t* packed, float* scales) {
  for (int v = 0; v < kTileVectors; ++v, latent += kLanes, packed += kLanes, scales += kLanes) {
    Norms norms[kLanes];
    T numbers[kLanes];
    const int64_t rows = most(0, least(kLanes, a.n - latent));
    const float* W = static_cast<const float*>(a.W.data) + latent * a.W.stride;
    for (int64_t r = 0; r < rows; ++r) numbers[r] = T::of_row(W + r * a.W.stride, a.d);
    for (int64_t c = 0; c < a.d; c += T::kColumns * kLanes) {
      vbits block[kLanes] = {};
      for (int64_t r = 0; r < rows; ++r) {
        block[r] = round_columns(numbers[r], W + r * a.W.stride, c, a.d, norms[r]);
        if constexpr (std::is_same_v<T, Bytes>) block[r] ^= Bytes::kOffset * 0x01010101u;  // adds it to each byte
      }
      transpose_block(block, packed + c / T::kColumns * kTileLatents);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float norm = norm_above(norms[r].squares, a.d), error = norm_above(norms[r].errors, a.d);
      const float bias = a.bias == nullptr ? 0.0f : __builtin_fabsf(a.bias[latent + r]);
      // With a bias that bfloat16 cannot hold, a latent is always a candidate.
      a.size[latent + r] = bias > 0.0f && bias < 0x1p-100f ? __builtin_inff() : norm + error;
      a.error[latent + r] = error;
      if constexpr (std::is_same_v<T, Bytes>) scales[r] = numbers[r].scale;
    }
  }
}

// Adds the products of M tokens with a tile of latents over the words first .. last to sums [tokens][kTileLatents].
template <class T, int M>
void screen_tile(const ScreenArgs& a, int64_t token, int64_t first, int64_t last, const uint32_t* packed,
                 uint32_t* tile_sums) {
  using Sums = typename T::Sums;
  const int64_t words = screen_words<T>(a.d);
  const uint32_t* x = a.packed + token * words;
  tile_sums += token * kTileLatents;
  Sums sums[M][kTileVectors] = {};
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kTileVectors; ++v) {
      if (first > 0) {
        sums[m][v] = reinterpret_cast<Sums>(load_words(tile_sums + m * kTileLatents + v * kLanes));
      } else if constexpr (std::is_same_v<T, Bytes>) {
        sums[m][v] += a.offset[token + m];
      }
    }
  }
  packed += first * kTileLatents;
  for (int64_t p = first; p < last; ++p, packed += kTileLatents) {
    vbits w[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) w[v] = load_words(packed + v * kLanes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < kTileVectors; ++v) sums[m][v] = T::products(sums[m][v], x[m * words + p], w[v]);
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < kTileVectors; ++v)
      *reinterpret_cast<loose_vbits*>(tile_sums + m * kTileLatents + v * kLanes) = reinterpret_cast<vbits>(sums[m][v]);
}

// The product of a token with a vector of latents, of the sums of their words.
template <class T>
TIDE_INLINE vfloat product_of(const ScreenArgs& a, int64_t token, vbits sums, const float* scales) {
  if constexpr (std::is_same_v<T, Halves>) return reinterpret_cast<vfloat>(sums);
  // In this order, so that no intermediate result is too small.
  return __builtin_convertvector(reinterpret_cast<vint>(sums), vfloat) * a.scale[token] * load(scales);
}

constexpr int64_t kTileWords = 16 * 1024 / (kTileLatents * 4);  // of a tile's weights, in the first-level cache

// The sums of the words of a tile of latents with all tokens, [tokens][kTileLatents]; scales are the latents' own.
template <class T>
TIDE_INLINE void sum_tile(const ScreenArgs& a, int64_t latent, uint32_t* packed, uint32_t* sums, float* scales) {
  const int64_t words = screen_words<T>(a.d);
  pack_latents<T>(a, latent, packed, scales);
  for (int64_t p = 0; p < words; p += kTileWords) {
    const int64_t end = least(p + kTileWords, words);
    int64_t i = 0;
    for (; i + kTileTokens <= a.n_tokens; i += kTileTokens) screen_tile<T, kTileTokens>(a, i, p, end, packed, sums);
    for (; i < a.n_tokens; ++i) screen_tile<T, 1>(a, i, p, end, packed, sums);
  }
}

template <class T>
void screen_product_of(const ScreenArgs& a, int64_t first, int64_t last, uint32_t* packed) {
  uint32_t* sums = packed + screen_words<T>(a.d) * kTileLatents;
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t latent = tile * kTileLatents, columns = least(kTileLatents, a.n - latent);
    float scales[kTileLatents] = {};
    sum_tile<T>(a, latent, packed, sums, scales);
    vfloat bias[kTileVectors] = {};
    if (a.bias != nullptr) load_row<kTileVectors>(a.bias + latent, columns, bias);
    for (int64_t i = 0; i < a.n_tokens; ++i) {
      uint16_t row[kTileLatents];
      for (int v = 0; v < kTileVectors; ++v) {
        const vbits word = load_words(sums + i * kTileLatents + v * kLanes);
        const vbits half = narrow(product_of<T>(a, i, word, scales + v * kLanes) + bias[v]);
        *reinterpret_cast<loose_vhalf*>(row + v * kLanes) = __builtin_convertvector(half, vhalf);
      }
      std::memcpy(a.product + i * a.stride + latent, row, columns * sizeof(uint16_t));
    }
  }
}

// Tiles first .. last of the latents; scratch: (most_pairs(d) + n_tokens) * kTileLatents integers.
void screen_product(const ScreenArgs& a, int64_t first, int64_t last, uint32_t* scratch) {
  if (a.screen == Screen::int8) return screen_product_of<Bytes>(a, first, last, scratch);
  screen_product_of<Halves>(a, first, last, scratch);
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
TIDE_INLINE vfloat upper(const ScreenArgs& a, vfloat product, int64_t j, vfloat alpha, vfloat beta) {
  const vfloat size = reinterpret_cast<vfloat>(reinterpret_cast<vbits>(product) & 0x7fffffffu);
  return product + (size * 0x1.01p-8f + alpha * load(a.size + j) + beta * load(a.error + j));
}

// The columns of row i that may be selected if the k-th value is not below `cut`; returns how many, or -1 if more than
// fit.
TIDE_INLINE int64_t candidates(const ScreenArgs& a, int64_t i, float cut, int32_t* columns) {
  const bf16* product = reinterpret_cast<const bf16*>(a.product + i * a.stride);
  const vfloat alpha = splat(a.alpha[i]), beta = splat(a.beta[i]);
  const int64_t room = a.capacity - kLanes;  // whole vectors are written
  int64_t count = 0;
  for (int64_t j = 0; j < a.n; j += kLanes) {  // the arrays are padded to whole vectors
    if (count > room) return -1;
    const vfloat above = upper(a, widen(load_half(product + j)), j, alpha, beta);
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

// exact[j] for R places of a row of candidates
template <int R>
TIDE_INLINE void exact_places(const ScreenArgs& a, const float* x, const int32_t* columns, float* exact) {
  const float* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = static_cast<const float*>(a.W.data) + columns[r] * a.W.stride;
  dots<R>(x, rows, a.d, exact);
}

TIDE_INLINE void exact_run(const ScreenArgs& a, const float* x, const int32_t* columns, int64_t count, float* exact) {
  for (; count >= 4; count -= 4, columns += 4, exact += 4) exact_places<4>(a, x, columns, exact);
  switch (count) {
    case 3: return exact_places<3>(a, x, columns, exact);
    case 2: return exact_places<2>(a, x, columns, exact);
    case 1: return exact_places<1>(a, x, columns, exact);
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
      const float* x = static_cast<const float*>(a.x.data) + i * a.x.stride;
      float* exact = a.exact + i * a.capacity;
      exact_run(a, x, columns + cursors[i], j - cursors[i], exact + cursors[i]);
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
