// Sums of squares, for the norm of gradients.
#pragma once

#include "vector.h"

namespace tide {
namespace TIDE_ISA {
namespace {

constexpr int64_t kSquaresPiece = 4096;  // elements whose squares are added in float, before double takes over

TIDE_INLINE float squares_of_piece(const float* from, int64_t count) {
  constexpr int kSums = 4;
  vfloat sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes)
    for (int j = 0; j < kSums; ++j) {
      const vfloat x = load(from + i + j * kLanes);
      sums[j] += x * x;
    }
  float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) total += from[i] * from[i];
  return total;
}

double squares(const float* from, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; i += kSquaresPiece)
    total += squares_of_piece(from + i, least(kSquaresPiece, count - i));
  return total;
}

}  // namespace
}  // namespace TIDE_ISA
}  // namespace tide
