// Exact top-k of each row.
//
// Floats become integer keys of the same order: the bits of a positive number, one key for all NaNs above
// infinity, negatives below 1. A sample of the row guesses a bound that about 1.3 k keys reach; those are copied
// out with their columns, and the k-th largest of them is found by bisection. If fewer than k reach the bound, all
// positives are copied out instead: the guess costs time, never exactness, and the buffers hold a whole row.
#pragma once

#include "vector.h"

namespace tide {
namespace TIDE_ISA {
namespace {

template <Element E>
struct Key;

template <>
struct Key<Element::f32> {
  using Bits = int32_t;
  static constexpr int32_t kInfinity = 0x7f800000, kMagnitude = 0x7fffffff, kQuiet = 0x7fc00000;
};
template <>
struct Key<Element::bf16> {
  using Bits = int16_t;
  static constexpr int32_t kInfinity = 0x7f80, kMagnitude = 0x7fff, kQuiet = 0x7fc0;
};
template <>
struct Key<Element::f16> {
  using Bits = int16_t;
  static constexpr int32_t kInfinity = 0x7c00, kMagnitude = 0x7fff, kQuiet = 0x7e00;
};

template <Element E>
TIDE_INLINE int32_t key_of(typename Key<E>::Bits bits) {
  return (bits & Key<E>::kMagnitude) > Key<E>::kInfinity ? Key<E>::kInfinity + 1 : bits;
}

template <Element E>
TIDE_INLINE typename Key<E>::Bits bits_of(int32_t key) {
  return static_cast<typename Key<E>::Bits>(key > Key<E>::kInfinity ? Key<E>::kQuiet : key);
}

constexpr int64_t kGroup = 16;        // keys are handled in groups of this many
constexpr int64_t kSampleLimit = 128;  // groups

#if defined(__AVX512F__)
template <Element E>
TIDE_INLINE __m512i keys_at(const typename Key<E>::Bits* p, __mmask16 lanes) {
  __m512i bits;
  if constexpr (E == Element::f32) {
    bits = _mm512_maskz_loadu_epi32(lanes, p);
  } else {
    bits = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes, p));
  }
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(Key<E>::kMagnitude));
  const __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(Key<E>::kInfinity));
  return _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(Key<E>::kInfinity + 1));
}
#endif

// Copies the keys >= bound (bound >= 1) and their columns; returns how many.
template <Element E>
TIDE_INLINE int64_t collect(const typename Key<E>::Bits* row, int64_t n, int32_t bound, int32_t* keys,
                            int32_t* columns) {
  int64_t count = 0;
#if defined(__AVX512F__)
  const __m512i lower = _mm512_set1_epi32(bound), step = _mm512_set1_epi32(kGroup);
  __m512i column = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < n; i += kGroup) {
    const __mmask16 lanes = n - i >= kGroup ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i key = keys_at<E>(row + i, lanes);
    const __mmask16 keep = _mm512_cmpge_epi32_mask(key, lower);
    // Compressing into memory is slow on some processors; a whole vector is written, the next one overlaps it.
    _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi32(keep, key));
    _mm512_storeu_si512(columns + count, _mm512_maskz_compress_epi32(keep, column));
    count += __builtin_popcount(keep);
    column = _mm512_add_epi32(column, step);
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = key_of<E>(row[i]);
    keys[count] = key;
    columns[count] = static_cast<int32_t>(i);
    count += key >= bound;
  }
#endif
  return count;
}

// keys: `groups` whole groups
TIDE_INLINE int64_t count_reaching(const int32_t* keys, int64_t groups, int32_t bound) {
  int64_t count = 0;
#if defined(__AVX512F__)
  const __m512i lower = _mm512_set1_epi32(bound), one = _mm512_set1_epi32(1);
  __m512i counts = _mm512_setzero_si512();
  for (int64_t i = 0; i < groups; ++i) {
    const __mmask16 reach = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + i * kGroup), lower);
    counts = _mm512_mask_add_epi32(counts, reach, counts, one);
  }
  count = _mm512_reduce_add_epi32(counts);
#else
  int32_t counts = 0;  // keys fewer than 2^31
  for (int64_t i = 0; i < groups * kGroup; ++i) counts += keys[i] >= bound;
  count = counts;
#endif
  return count;
}

// A key that, by a sample, somewhat more than k of the n reach.
template <Element E>
TIDE_INLINE int32_t guess_bound(const typename Key<E>::Bits* row, int64_t n, int64_t k) {
  const int64_t groups = least(kSampleLimit, n / (8 * kGroup));
  if (groups < 16) return 1;
  int32_t sample[kSampleLimit * kGroup];
  const int64_t apart = n / groups;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < kGroup; ++i) sample[g * kGroup + i] = key_of<E>(row[g * apart + i]);
  // Expected rank, and a margin of three standard deviations (their square root by Newton's steps from above).
  const int64_t expected = groups * kGroup * k / n;
  int64_t root = expected + 1;
  while (root * root > expected) root = (root + expected / root) / 2;
  const int64_t rank = expected + 3 * root + 6;
  int32_t low = 1, high = Key<E>::kInfinity + 2;
  // 16-bit keys end at once; of 32-bit keys the upper half is enough for a guess.
  const int32_t enough = E == Element::f32 ? 1 << 15 : 1;
  while (high - low > enough) {
    const int32_t middle = low + (high - low) / 2;
    const int64_t count = count_reaching(sample, groups, middle);
    if (count >= rank) {
      low = middle;
      if (count < rank + rank / 8) break;
    } else {
      high = middle;
    }
  }
  return low;
}

template <Element E>
TIDE_INLINE void select_row(const typename Key<E>::Bits* row, int64_t n, int64_t k, typename Key<E>::Bits* values,
                            int32_t* indices, int32_t* keys, int32_t* columns) {
  int32_t low = guess_bound<E>(row, n, k);
  int64_t found = collect<E>(row, n, low, keys, columns);
  if (found < k && low > 1) {
    low = 1;
    found = collect<E>(row, n, low, keys, columns);
  }
  // At least k keys reach `low`, and `above`, fewer than k, reach `high`; all of them may be taken if no more.
  int64_t above = 0, room = k;
  if (found > k) {
    const int64_t groups = (found + kGroup - 1) / kGroup;
    for (int64_t i = found; i < groups * kGroup; ++i) keys[i] = 0;
    int32_t high = Key<E>::kInfinity + 2;
    while (high - low > 1) {
      const int32_t middle = low + (high - low) / 2;
      const int64_t count = count_reaching(keys, groups, middle);
      if (count >= k) {
        low = middle;
        if (count == k) break;
      } else {
        high = middle;
        above = count;
      }
    }
    room = k - above;  // for keys equal to low; if exactly k keys reach low, it is enough for all of them
    if (high - low > 1) room = k;
  }
  int64_t taken = 0;
#if defined(__AVX512F__)
  const __m512i threshold = _mm512_set1_epi32(low);
  for (int64_t i = 0; i < found; i += kGroup) {
    const __mmask16 lanes = found - i >= kGroup ? 0xffff : static_cast<__mmask16>((1u << (found - i)) - 1);
    const __m512i key = _mm512_maskz_loadu_epi32(lanes, keys + i);
    const __m512i column = _mm512_maskz_loadu_epi32(lanes, columns + i);
    const __mmask16 over = _mm512_cmpgt_epi32_mask(key, threshold);
    __mmask16 tied = _mm512_cmpeq_epi32_mask(key, threshold);
    const int n_tied = __builtin_popcount(tied);
    if (n_tied > room) tied = static_cast<__mmask16>(_pdep_u32((1u << room) - 1, tied));
    room -= n_tied < room ? n_tied : room;
    const __mmask16 keep = over | tied;
    const int n_kept = __builtin_popcount(keep);
    const __mmask16 write = static_cast<__mmask16>((1u << n_kept) - 1);
    const __mmask16 nan = _mm512_cmpgt_epi32_mask(key, _mm512_set1_epi32(Key<E>::kInfinity));
    const __m512i bits = _mm512_mask_mov_epi32(key, nan, _mm512_set1_epi32(Key<E>::kQuiet));
    const __m512i kept = _mm512_maskz_compress_epi32(keep, bits);
    if constexpr (E == Element::f32) {
      _mm512_mask_storeu_epi32(values + taken, write, kept);
    } else {
      _mm256_mask_storeu_epi16(values + taken, write, _mm512_cvtepi32_epi16(kept));
    }
    _mm512_mask_storeu_epi32(indices + taken, write, _mm512_maskz_compress_epi32(keep, column));
    taken += n_kept;
  }
#else
  for (int64_t i = 0; i < found && taken < k; ++i) {
    const bool tied = keys[i] == low;
    if (keys[i] > low || (tied && room > 0)) {
      room -= tied;
      values[taken] = bits_of<E>(keys[i]);
      indices[taken++] = columns[i];
    }
  }
#endif
  for (; taken < k; ++taken) {
    values[taken] = 0;
    indices[taken] = -1;
  }
}

template <Element E>
void select_rows(const SelectArgs& a, int64_t first, int64_t last, int32_t* scratch) {
  using Bits = typename Key<E>::Bits;
  int32_t *keys = scratch, *columns = scratch + select_scratch(a.n);
  for (int64_t i = first; i < last; ++i) {
    select_row<E>(static_cast<const Bits*>(a.pre.data) + i * a.pre.stride, a.n, a.k,
                  static_cast<Bits*>(a.values) + i * a.k, a.indices + i * a.k, keys, columns);
  }
}

void select(Element element, const SelectArgs& a, int64_t first, int64_t last, int32_t* scratch) {
  switch (element) {
    case Element::f32: return select_rows<Element::f32>(a, first, last, scratch);
    case Element::bf16: return select_rows<Element::bf16>(a, first, last, scratch);
    case Element::f16: return select_rows<Element::f16>(a, first, last, scratch);
  }
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
