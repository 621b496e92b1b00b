// Checks of thresholds, and of the groups and ties that go with them.
#pragma once

#include "tensors.h"

namespace tide {

// Thresholds as tensors.
struct GivenThresholds {
  Tensor data;
  std::optional<Tensor> group, cut;
  Thresholds args{};

  GivenThresholds(const Tensor& threshold, const std::optional<Tensor>& given_group,
                  const std::optional<Tensor>& given_cut, int64_t n_tokens, int64_t n)
      : data(threshold) {
    require_matrix(data, "threshold");
    require_shape(data, "threshold", data.size(0), n);
    require(data.scalar_type() == ScalarType::Float, "threshold is not float32: cast it");
    if (n > 1 && data.stride(1) != 0 && data.stride(1) != 1) data = torch::stable::contiguous(data);
    args = {float_data(data), data.stride(0), n > 1 ? data.stride(1) : 0, nullptr, nullptr};
    if (given_group.has_value()) {
      group = vector(*given_group, "group", ScalarType::Long, n_tokens);
      args.group = static_cast<const int64_t*>(group->data_ptr());
      bool inside = true;
      for (int64_t i = 0; i < n_tokens; ++i) inside &= args.group[i] >= 0 && args.group[i] < data.size(0);
      require(inside, "group holds a number outside [0, " + std::to_string(data.size(0)) + "), the rows of threshold");
    } else {
      require(data.size(0) == 1, "threshold has " + std::to_string(data.size(0)) + " rows: pass the group of each token");
    }
    if (given_cut.has_value()) {
      cut = vector(*given_cut, "cut", ScalarType::Int, n_tokens);
      args.cut = static_cast<const int32_t*>(cut->data_ptr());
    }
  }

  static Tensor vector(const Tensor& t, const char* name, ScalarType type, int64_t numel) {
    require(t.is_cpu() && t.dim() == 1 && t.numel() == numel && t.scalar_type() == type,
            std::string(name) + " is not one " + (type == ScalarType::Int ? "int32" : "int64") + " number a token");
    return torch::stable::contiguous(t);
  }

  // The thresholds of the tokens from `first`.
  Thresholds from(int64_t first) const {
    Thresholds part = args;
    if (part.group != nullptr) part.group += first;
    if (part.cut != nullptr) part.cut += first;
    return part;
  }
};

}  // namespace tide
