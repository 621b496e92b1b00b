// Vectors of floats as wide as the instruction set, by the compiler's vector extensions: no intrinsics needed.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define TIDE_INLINE static inline __attribute__((always_inline))

namespace tide {
namespace TIDE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vbits __attribute__((vector_size(4 * kLanes)));
typedef int32_t vint __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vhalf __attribute__((vector_size(2 * kLanes)));
typedef float loose_vfloat __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t loose_vbits __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef uint16_t loose_vhalf __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};

TIDE_INLINE vfloat load(const float* p) { return *reinterpret_cast<const loose_vfloat*>(p); }
TIDE_INLINE void store(float* p, vfloat v) { *reinterpret_cast<loose_vfloat*>(p) = v; }
TIDE_INLINE vbits load_words(const uint32_t* p) { return *reinterpret_cast<const loose_vbits*>(p); }
TIDE_INLINE vfloat splat(float x) { return x - vfloat{}; }

TIDE_INLINE float sum(vfloat v) {
  float lanes[kLanes];
  store(lanes, v);
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  for (int step = kLanes / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
#endif
}

TIDE_INLINE float to_float(float x) { return x; }
TIDE_INLINE float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

TIDE_INLINE bf16 to_bf16(float x) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}
template <class T>
TIDE_INLINE float rounded(float x) {
  if constexpr (sizeof(T) == sizeof(bf16)) return to_float(to_bf16(x));
  return x;
}

TIDE_INLINE vhalf load_half(const bf16* p) { return *reinterpret_cast<const loose_vhalf*>(p); }
TIDE_INLINE vfloat widen(vhalf half) { return reinterpret_cast<vfloat>(__builtin_convertvector(half, vbits) << 16); }
// As to_bf16, in the lower halves of the lanes.
TIDE_INLINE vbits narrow(vfloat v) {
  const vbits bits = reinterpret_cast<vbits>(v);
  const vbits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? vbits{} + 0x7fc0 : rounded;
}

// A unit of columns: one vector of floats, or two of bfloat16, so that either fills whole vectors of 32 bits.
template <class T>
struct Unit;

template <>
struct Unit<float> {
  static constexpr int kVectors = 1, kColumns = kLanes;
  TIDE_INLINE void natural(const float* p, vfloat* out) { out[0] = load(p); }
  TIDE_INLINE void packed(const float* p, vfloat* out) { out[0] = load(p); }
  TIDE_INLINE void pack(const float* from, float* to) { store(to, load(from)); }
  TIDE_INLINE void pack(const bf16* from, float* to) { store(to, widen(load_half(from))); }
};

template <>
struct Unit<bf16> {
  static constexpr int kVectors = 2, kColumns = 2 * kLanes;
  TIDE_INLINE void natural(const bf16* p, vfloat* out) {
    out[0] = widen(load_half(p));
    out[1] = widen(load_half(p + kLanes));
  }
  // Columns i and i + kLanes share 32 bits: a shift and a mask give two vectors in the natural order.
  TIDE_INLINE void packed(const bf16* p, vfloat* out) {
    const vbits pairs = *reinterpret_cast<const loose_vbits*>(p);
    out[0] = reinterpret_cast<vfloat>(pairs << 16);
    out[1] = reinterpret_cast<vfloat>(pairs & 0xffff0000u);
  }
  TIDE_INLINE void join(vbits low, vbits high, bf16* to) { *reinterpret_cast<loose_vbits*>(to) = low | high << 16; }
  TIDE_INLINE void pack(const float* from, bf16* to) { join(narrow(load(from)), narrow(load(from + kLanes)), to); }
  TIDE_INLINE void pack(const bf16* from, bf16* to) {
    join(__builtin_convertvector(load_half(from), vbits), __builtin_convertvector(load_half(from + kLanes), vbits), to);
  }
};

constexpr int kMaxUnits = 8;  // of a panel of floats; half as many of bfloat16: the same number of vectors

template <class T>
constexpr int max_units() {
  return kMaxUnits / Unit<T>::kVectors;
}

TIDE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
TIDE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <int U>
struct Units {
  static constexpr int value = U;
};

// f(Units<u>{}) for a number u of units known only at run time.
template <class T, class F>
TIDE_INLINE void with_units(int64_t units, F&& f) {
  switch (units) {
    case 1: return f(Units<1>{});
    case 2: return f(Units<2>{});
    case 3: return f(Units<3>{});
    case 4: return f(Units<4>{});
    default: break;
  }
  if constexpr (max_units<T>() == 8) {
    switch (units) {
      case 5: return f(Units<5>{});
      case 6: return f(Units<6>{});
      case 7: return f(Units<7>{});
      default: return f(Units<8>{});
    }
  }
}

// Columns of one panel in a row of a plain matrix, complete: a row that ends inside the panel is copied and
// padded with zeros.
template <class T, int U>
struct Piece {
  static constexpr int kColumns = U * Unit<T>::kColumns;
  T copy[kColumns];
  TIDE_INLINE const T* whole(Piece& piece, const T* row, int64_t columns) {
    if (columns >= kColumns) return row;
    std::memset(piece.copy, 0, sizeof(piece.copy));
    std::memcpy(piece.copy, row, columns * sizeof(T));
    return piece.copy;
  }
};

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
