// Checks of what comes from Python, and loops over torch's own threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace tide {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error("tide_native: " + message);
}

inline void require_matrix(const Tensor& t, const char* name) {
  require(t.dim() == 2, std::string(name) + " is not a matrix: pass a tensor of two dimensions");
  require(t.is_cpu(), std::string(name) + " is not on the CPU: move it there");
}

inline void require_shape(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  require_matrix(t, name);
  require(t.size(0) == rows && t.size(1) == columns,
          std::string(name) + " is [" + std::to_string(t.size(0)) + ", " + std::to_string(t.size(1)) + "], not [" +
              std::to_string(rows) + ", " + std::to_string(columns) + "]");
}

// The element type, or an error that names the tensor.
inline Element element_of(const Tensor& t, const char* name, bool half = false) {
  const ScalarType type = t.scalar_type();
  if (type == ScalarType::Float) return Element::f32;
  if (type == ScalarType::BFloat16) return Element::bf16;
  require(half && type == ScalarType::Half,
          std::string(name) + " has a dtype that is not served: cast it to float32 or bfloat16");
  return Element::f16;
}

// Rows may be apart, columns may not: anything else is copied.
inline Tensor adjacent_columns(const Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

inline Matrix matrix(const Tensor& t) { return {t.data_ptr(), t.stride(0)}; }

inline Tensor floats(const Tensor& t) {
  const Tensor out = t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
  return torch::stable::contiguous(out);
}

inline const float* float_data(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

// int32 and contiguous; a wider index that does not fit becomes one that is out of range.
inline Tensor code_indices(const Tensor& indices) {
  require_matrix(indices, "indices");
  const Tensor given = torch::stable::contiguous(indices);
  if (given.scalar_type() == ScalarType::Int) return given;
  require(given.scalar_type() == ScalarType::Long, "indices are not int32 or int64: cast them");
  Tensor out = torch::stable::new_empty(given, given.sizes(), ScalarType::Int);
  const int64_t* wide = static_cast<const int64_t*>(given.data_ptr());
  int32_t* narrow = static_cast<int32_t*>(out.data_ptr());
  for (int64_t i = 0, count = given.numel(); i < count; ++i)
    narrow[i] = wide[i] < -1 || wide[i] > INT32_MAX ? INT32_MIN : static_cast<int32_t>(wide[i]);
  return out;
}

// A float tensor that is written in place, contiguous; null where there is none.
inline float* target(const std::optional<Tensor>& t, const char* name, int64_t numel) {
  if (!t.has_value()) return nullptr;
  require(t->is_cpu() && t->scalar_type() == ScalarType::Float && t->is_contiguous() && t->numel() == numel,
          std::string(name) + " has to be contiguous float32 of " + std::to_string(numel) + " elements");
  return static_cast<float*>(t->data_ptr());
}

// Memory without initial values, aligned to cache lines.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : bytes_(new char[count * sizeof(T) + 64]) {}
  T* data() const {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.get());
    return reinterpret_cast<T*>((address + 63) & ~static_cast<uintptr_t>(63));
  }

 private:
  std::unique_ptr<char[]> bytes_;
};

}  // namespace tide
