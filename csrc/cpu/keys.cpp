// key_histogram_ and count_equal: what the cut of a whole batch is found from.
#include <algorithm>
#include <limits>

#include "tensors.h"

namespace tide {
namespace {

// 0 for an entry that is neither above 0 nor NaN.
int32_t key_of(int32_t bits) {
  return (bits & INT32_MAX) > 0x7f800000 ? INT32_MAX : bits < 0 ? 0 : bits;
}
int32_t key_of(int16_t bits) {
  return (bits & INT16_MAX) > 0x7f80 ? INT16_MAX : bits < 0 ? 0 : bits;
}

// How the bits of a key are counted: those from `shift`, if what is above them is `high`, or is anything without it.
struct Part {
  int64_t shift, bits, high;
  bool all;
};

template <class Bits>
void add_keys(const Bits* from, int64_t count, const Part& part, int32_t* counts) {
  const int32_t mask = static_cast<int32_t>((int64_t{1} << part.bits) - 1);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t key = key_of(from[i]);
    if (key > 0 && (part.all || static_cast<int64_t>(key) >> (part.shift + part.bits) == part.high))
      ++counts[key >> part.shift & mask];
  }
}

template <class Bits>
void histogram(const Tensor& pre, const Part& part, int64_t* counts) {
  constexpr int64_t kMost = INT32_MAX;  // entries of a range, whose counts are 32 bits
  const int64_t total = pre.numel(), size = int64_t{1} << part.bits;
  const int64_t threads = torch::stable::get_num_threads(), worth = 1 + total / (4 * size);
  const int64_t ranges = std::max(std::min(threads, worth), 1 + total / kMost);
  std::vector<int32_t> own(ranges * size);
  const Bits* from = static_cast<const Bits*>(pre.data_ptr());
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      add_keys(from + total * r / ranges, total * (r + 1) / ranges - total * r / ranges, part, own.data() + r * size);
  });
  for (int64_t r = 0; r < ranges; ++r)
    for (int64_t i = 0; i < size; ++i) counts[i] += own[r * size + i];
}

void key_histogram_(const Tensor& given, Tensor counts, int64_t shift, std::optional<Tensor> high) {
  require(given.is_cpu(), "pre is not on the CPU: move it there");
  const Element element = element_of(given, "pre");
  const Tensor pre = torch::stable::contiguous(given);
  require(counts.is_cpu() && counts.scalar_type() == ScalarType::Long && counts.is_contiguous(),
          "counts have to be contiguous int64");
  Part part{shift, 0, 0, !high.has_value()};
  while (part.bits < 31 && int64_t{1} << part.bits < counts.numel()) ++part.bits;
  require(counts.numel() == int64_t{1} << part.bits && shift >= 0 && shift < 32,
          "counts are not a power of two, or shift is not from 0 to 31");
  if (high.has_value()) {
    require(high->is_cpu() && high->scalar_type() == ScalarType::Long && high->numel() == 1, "high is not one int64");
    part.high = *static_cast<const int64_t*>(high->data_ptr());
  }
  int64_t* count = static_cast<int64_t*>(counts.data_ptr());
  if (element == Element::bf16) return histogram<int16_t>(pre, part, count);
  histogram<int32_t>(pre, part, count);
}

template <class Bits>
void count_rows(const Tensor& pre, Bits value, Bits mask, int32_t* counts) {
  const int64_t n = pre.size(1), stride = pre.stride(0);
  const Bits* rows = static_cast<const Bits*>(pre.data_ptr());
  torch::stable::parallel_for(0, pre.size(0), 1 + 65536 / (n + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      int32_t count = 0;
      // 0 equals -0.0: the bits of their magnitudes are compared.
      for (int64_t j = 0; j < n; ++j) count += static_cast<Bits>(rows[i * stride + j] & mask) == value;
      counts[i] = count;
    }
  });
}

template <class Bits>
void count_bits(const Tensor& pre, Bits value, Bits infinity, int32_t* counts) {
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
  if ((value & kMagnitude) > infinity) {
    std::fill(counts, counts + pre.size(0), 0);  // NaN equals nothing
  } else if ((value & kMagnitude) == 0) {
    count_rows<Bits>(pre, 0, kMagnitude, counts);
  } else {
    count_rows<Bits>(pre, value, -1, counts);
  }
}

Tensor count_equal(const Tensor& given, const Tensor& value) {
  require_matrix(given, "pre");
  const Tensor pre = adjacent_columns(given);
  const Element element = element_of(pre, "pre");
  require(value.is_cpu() && value.numel() == 1 && value.scalar_type() == pre.scalar_type(),
          "value is not one number of pre's dtype");
  Tensor counts = torch::stable::new_empty(pre, {pre.size(0)}, ScalarType::Int);
  int32_t* count = static_cast<int32_t*>(counts.data_ptr());
  if (element == Element::bf16) {
    count_bits<int16_t>(pre, *static_cast<const int16_t*>(value.data_ptr()), 0x7f80, count);
  } else {
    count_bits<int32_t>(pre, *static_cast<const int32_t*>(value.data_ptr()), 0x7f800000, count);
  }
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) {
  m.impl("key_histogram_", TORCH_BOX(&key_histogram_));
  m.impl("count_equal", TORCH_BOX(&count_equal));
}

}  // namespace tide
