// What is above a threshold: of rows that exist, and of a product that does not.
//
// Floats become integers of the same order, one for all NaNs above infinity, so that neither flushed denormals nor NaN
// need care. For a product, a screen (screen.h) rules out every entry whose upper bound is not above its threshold,
// tile by tile of latents; the others are computed in float32 at once, while the tile's weights are in the second-level
// cache, and only they are compared and returned. No matrix [tokens, latents] exists.
#pragma once

#include "screen.h"

namespace tide {
namespace TIDE_ISA {
namespace {

constexpr int32_t kNaN = INT32_MAX;  // as an ordered integer

TIDE_INLINE int32_t ordered_bits(int32_t bits) {
  const int32_t magnitude = bits & Key<Element::f32>::kMagnitude;
  return magnitude > Key<Element::f32>::kInfinity ? kNaN : bits < 0 ? -magnitude : magnitude;
}

TIDE_INLINE int32_t ordered(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return ordered_bits(bits);
}

// The bits of the same value in float32.
template <Element E>
TIDE_INLINE int32_t wide_bits(typename Key<E>::Bits bits) {
  return E == Element::f32 ? bits : static_cast<int32_t>(static_cast<uint32_t>(bits) << 16);
}

// The thresholds of one row.
struct Bar {
  const float* thresholds;
  int64_t stride;  // from latent to latent
  int64_t tied;    // latents below it are kept where they equal their threshold

  TIDE_INLINE Bar of_row(const Thresholds& t, int64_t row) {
    const int64_t group = t.group == nullptr ? 0 : t.group[row];
    return {t.data + group * t.group_stride, t.latent_stride, t.cut == nullptr ? 0 : t.cut[row] + int64_t{1}};
  }
  TIDE_INLINE bool passes(const Bar& bar, int32_t order, int64_t latent) {
    const int32_t threshold = ordered(bar.thresholds[latent * bar.stride]);
    return order > threshold || (order == threshold && latent < bar.tied);
  }
};

#if defined(__AVX512F__)
TIDE_INLINE __m512i ordered_bits(__m512i bits) {
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(Key<Element::f32>::kMagnitude));
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(Key<Element::f32>::kInfinity));
  const __m512i order =
      _mm512_mask_sub_epi32(magnitude, _mm512_movepi32_mask(bits), _mm512_setzero_si512(), magnitude);
  return _mm512_mask_mov_epi32(order, nan, _mm512_set1_epi32(kNaN));
}

TIDE_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

template <Element E>
TIDE_INLINE __m512i wide_bits_at(const typename Key<E>::Bits* p, __mmask16 lanes) {
  if constexpr (E == Element::f32) return _mm512_maskz_loadu_epi32(lanes, p);
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p)), 16);
}

// Which of the latents from `latent`, a lane each, pass.
TIDE_INLINE __mmask16 passing(const Bar& bar, __m512i bits, int64_t latent, __mmask16 lanes) {
  const __m512i at = bar.stride == 0 ? _mm512_castps_si512(_mm512_set1_ps(*bar.thresholds))
                                     : _mm512_maskz_loadu_epi32(lanes, bar.thresholds + latent);
  const __m512i threshold = ordered_bits(at), order = ordered_bits(bits);
  const __mmask16 above = _mm512_mask_cmpgt_epi32_mask(lanes, order, threshold);
  if (bar.tied <= latent) return above;
  return above | _mm512_mask_cmpeq_epi32_mask(lanes & first_lanes(bar.tied - latent), order, threshold);
}

template <Element E>
TIDE_INLINE void store_bits(typename Key<E>::Bits* to, __mmask16 lanes, __m512i wide) {
  if constexpr (E == Element::f32) {
    _mm512_mask_storeu_epi32(to, lanes, wide);
  } else {
    _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(wide, 16)));
  }
}
#endif

template <Element E>
TIDE_INLINE int64_t collect_above(const typename Key<E>::Bits* row, int64_t n, const Bar& bar,
                                  typename Key<E>::Bits* values, int32_t* columns) {
  int64_t count = 0;
#if defined(__AVX512F__)
  __m512i column = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < n; i += kGroup) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512i bits = wide_bits_at<E>(row + i, lanes);
    const __mmask16 keep = passing(bar, bits, i, lanes);
    store_bits<E>(values + count, 0xffff, _mm512_maskz_compress_epi32(keep, bits));
    _mm512_storeu_si512(columns + count, _mm512_maskz_compress_epi32(keep, column));
    count += __builtin_popcount(keep);
    column = _mm512_add_epi32(column, _mm512_set1_epi32(kGroup));
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    values[count] = row[i];
    columns[count] = static_cast<int32_t>(i);
    count += Bar::passes(bar, ordered_bits(wide_bits<E>(row[i])), i);
  }
#endif
  return count;
}

template <Element E>
TIDE_INLINE int64_t keep_above(const typename Key<E>::Bits* row, int64_t n, const Bar& bar,
                               typename Key<E>::Bits* out) {
  int64_t count = 0;
#if defined(__AVX512F__)
  for (int64_t i = 0; i < n; i += kGroup) {
    const __mmask16 lanes = first_lanes(n - i);
    const __m512i bits = wide_bits_at<E>(row + i, lanes);
    const __mmask16 keep = passing(bar, bits, i, lanes);
    store_bits<E>(out + i, lanes, _mm512_maskz_mov_epi32(keep, bits));
    count += __builtin_popcount(keep);
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    const bool keep = Bar::passes(bar, ordered_bits(wide_bits<E>(row[i])), i);
    out[i] = keep ? row[i] : 0;
    count += keep;
  }
#endif
  return count;
}

template <Element E>
TIDE_INLINE const typename Key<E>::Bits* bits_of_row(const Matrix& m, int64_t row) {
  return static_cast<const typename Key<E>::Bits*>(m.data) + row * m.stride;
}

int64_t above_row(Element element, const Matrix& pre, int64_t n, const Thresholds& thresholds, int64_t row, void* values,
                  int32_t* columns) {
  const Bar bar = Bar::of_row(thresholds, row);
  if (element == Element::bf16)
    return collect_above<Element::bf16>(bits_of_row<Element::bf16>(pre, row), n, bar, static_cast<int16_t*>(values),
                                        columns);
  return collect_above<Element::f32>(bits_of_row<Element::f32>(pre, row), n, bar, static_cast<int32_t*>(values),
                                     columns);
}

int64_t keep_above_row(Element element, const Matrix& pre, int64_t n, const Thresholds& thresholds, int64_t row,
                       void* out) {
  const Bar bar = Bar::of_row(thresholds, row);
  if (element == Element::bf16)
    return keep_above<Element::bf16>(bits_of_row<Element::bf16>(pre, row), n, bar, static_cast<int16_t*>(out));
  return keep_above<Element::f32>(bits_of_row<Element::f32>(pre, row), n, bar, static_cast<int32_t*>(out));
}

// Of the lanes of `upper`, those that may pass.
TIDE_INLINE uint64_t may_pass(vfloat upper, vfloat threshold, bool tied) {
#if defined(__AVX512F__)
  const __m512 u = reinterpret_cast<__m512>(upper), t = reinterpret_cast<__m512>(threshold);
  return tied ? _mm512_cmp_ps_mask(u, t, _CMP_NLT_UQ) : _mm512_cmp_ps_mask(u, t, _CMP_NLE_UQ);
#else
  const vint below = tied ? upper < threshold : upper <= threshold;
#if defined(__AVX2__)
  return static_cast<uint8_t>(~_mm256_movemask_ps(reinterpret_cast<__m256>(below)));
#else
  uint64_t lanes = 0;
  for (int lane = 0; lane < kLanes; ++lane) lanes |= static_cast<uint64_t>(below[lane] == 0) << lane;
  return lanes;
#endif
#endif
}

// A tile of latents, padded with zeros where it ends early.
struct TileRow {
  vfloat vectors[kTileVectors];
  TIDE_INLINE TileRow of(const float* row, int64_t columns) {
    TileRow tile;
    load_row<kTileVectors>(row, columns, tile.vectors);
    return tile;
  }
};

// The latents of a tile, bit by bit, whose float32 value for token i may be above its threshold. The product is not
// rounded to bfloat16 here; a 2^20-th of it is more than what sums with a bias are rounded by.
template <class T>
TIDE_INLINE uint64_t tile_candidates(const ScreenArgs& a, int64_t i, int64_t latent, const uint32_t* sums,
                                     const float* scales, const TileRow& bias, const TileRow& thresholds, bool tied) {
  const vfloat alpha = splat(a.alpha[i]), beta = splat(a.beta[i]);
  uint64_t found = 0;
  for (int v = 0; v < kTileVectors && latent + v * kLanes < a.n; ++v) {
    const int64_t j = latent + v * kLanes;
    const vfloat product = product_of<T>(a, i, load_words(sums + v * kLanes), scales + v * kLanes) + bias.vectors[v];
    const vfloat size = reinterpret_cast<vfloat>(reinterpret_cast<vbits>(product) & 0x7fffffffu);
    const vfloat upper = product + (size * 0x1p-20f + alpha * load(a.size + j) + beta * load(a.error + j));
    found |= may_pass(upper, thresholds.vectors[v], tied) << (v * kLanes);
  }
  return found;
}

// Candidates of a few tokens in a tile of latents, token by token, and their float32 values.
struct Candidates {
  int64_t first, tokens;
  int32_t starts[kAboveTokens + 1];
  uint8_t columns[kAboveTokens * kTileLatents];  // in the tile
  float* sums;                                   // [candidates][kLanes]
};

// The last columns of a tile's rows where they do not fill a panel, padded with zeros.
TIDE_INLINE void pack_rest(const ScreenArgs& a, int64_t latent, int64_t latents, float* rest) {
  const int64_t c = a.d / kPanelColumns * kPanelColumns;
  const float* from = static_cast<const float*>(a.W.data) + latent * a.W.stride + c;
  for (int64_t r = 0; r < latents && c < a.d; ++r)
    pack_piece(from + r * a.W.stride, a.d - c, kPanelColumns, rest + r * kPanelColumns);
}

// The sums of products, lane by lane and each in the order of the columns, panel by panel.
TIDE_INLINE void add_products(const ScreenArgs& a, int64_t latent, const float* rest, Candidates& of) {
  std::memset(of.sums, 0, of.starts[of.tokens] * kLanes * sizeof(float));
  const float* tokens = a.panels + of.first * kPanelColumns;
  for (int64_t c = 0; c < a.d; c += kPanelColumns, tokens += a.n_tokens * kPanelColumns) {
    const bool whole = a.d - c >= kPanelColumns;
    const float* panel = whole ? static_cast<const float*>(a.W.data) + latent * a.W.stride + c : rest;
    const int64_t stride = whole ? a.W.stride : kPanelColumns;
    for (int64_t i = 0; i < of.tokens; ++i) {
      vfloat x[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) x[v] = load(tokens + i * kPanelColumns + v * kLanes);
      for (int64_t j = of.starts[i]; j < of.starts[i + 1]; ++j) {
        const float* weights = panel + of.columns[j] * stride;
        vfloat sum = load(of.sums + j * kLanes);
        for (int v = 0; v < kPanelVectors; ++v) sum += x[v] * load(weights + v * kLanes);
        store(of.sums + j * kLanes, sum);
      }
    }
  }
}

// Appends those of the candidates that are above their thresholds to `out`.
TIDE_INLINE void take_above(const ScreenArgs& a, const Thresholds& thresholds, int64_t latent, const Candidates& of,
                            TileAbove& out) {
  for (int64_t i = 0; i < of.tokens; ++i) {
    const Bar bar = Bar::of_row(thresholds, of.first + i);
    out.starts[of.first + i] = static_cast<int32_t>(out.count);
    uint64_t above = 0;
    for (int64_t j = of.starts[i]; j < of.starts[i + 1]; ++j) {
      const int64_t column = of.columns[j];
      float value = sum(load(of.sums + j * kLanes));
      if (a.bias != nullptr) value += a.bias[latent + column];
      const bool passes = Bar::passes(bar, ordered(value), latent + column);
      out.values[out.count] = value;
      out.count += passes;
      above |= static_cast<uint64_t>(passes) << column;
    }
    out.latents[of.first + i] = above;
  }
  out.candidates += of.starts[of.tokens];
}

template <class T>
void above_tile_of(const ScreenArgs& a, const Thresholds& thresholds, int64_t tile, uint32_t* packed, TileAbove& out) {
  uint32_t* sums = packed + screen_words<T>(a.d) * kTileLatents;
  float* rest = reinterpret_cast<float*>(sums + a.n_tokens * kTileLatents);
  const int64_t latent = tile * kTileLatents, latents = least(kTileLatents, a.n - latent);
  const uint64_t valid = latents == 64 ? ~uint64_t{0} : (uint64_t{1} << latents) - 1;
  float scales[kTileLatents] = {};
  sum_tile<T>(a, latent, packed, sums, scales);
  pack_rest(a, latent, latents, rest);
  const TileRow bias = a.bias == nullptr ? TileRow{} : TileRow::of(a.bias + latent, latents);
  TileRow row = {};
  for (int v = 0; v < kTileVectors; ++v) row.vectors[v] = splat(*thresholds.data);
  out.count = out.candidates = 0;
  Candidates some;
  some.sums = rest + kPanelColumns * kTileLatents;
  for (some.first = 0; some.first < a.n_tokens; some.first += kAboveTokens) {
    some.tokens = least(kAboveTokens, a.n_tokens - some.first);
    int32_t count = 0;
    for (int64_t i = 0; i < some.tokens; ++i) {
      const int64_t token = some.first + i;
      const Bar bar = Bar::of_row(thresholds, token);
      if (bar.stride != 0) row = TileRow::of(bar.thresholds + latent, latents);
      some.starts[i] = count;
      uint64_t found = valid & tile_candidates<T>(a, token, latent, sums + token * kTileLatents, scales, bias, row,
                                                  bar.tied > latent);
      for (; found; found &= found - 1) some.columns[count++] = static_cast<uint8_t>(__builtin_ctzll(found));
    }
    some.starts[some.tokens] = count;
    if (count > 0) add_products(a, latent, rest, some);
    take_above(a, thresholds, latent, some, out);
  }
}

void above_tile(const ScreenArgs& a, const Thresholds& thresholds, int64_t tile, uint32_t* scratch, TileAbove& out) {
  if (a.screen == Screen::int8) return above_tile_of<Bytes>(a, thresholds, tile, scratch, out);
  above_tile_of<Halves>(a, thresholds, tile, scratch, out);
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
