// norm and adamw_: the two passes of a training step over all gradients.
#include <cmath>

#include "tensors.h"

namespace tide {
namespace {

using Tensors = std::vector<Tensor>;

// Every tensor is cut into this many slices, and threads take the same slices of all tensors. Not by the number of
// threads, since the sums of norms depend on it.
constexpr int64_t kSlices = 64;

// The first element of a slice, at a whole cache line.
int64_t slice_start(int64_t numel, int64_t slice) {
  return slice == kSlices ? numel : numel / 16 * slice / kSlices * 16;
}

void adamw_(const Tensors& parameters, const Tensors& gradients, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
            const Tensors& steps, double lr, double beta1, double beta2,
            double weight_decay, double eps, double divisor) {
  const size_t count = parameters.size();
  require(gradients.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count && steps.size() == count,
          "adamw_ needs a gradient, two moments and a step for each parameter");
  std::vector<AdamWArgs> updates(count);
  std::vector<float*> counters(count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t numel = parameters[i].numel();
    AdamWArgs& a = updates[i];
    a.numel = numel;
    a.parameter = target(parameters[i], "a parameter", numel);
    a.gradient = target(gradients[i], "its gradient", numel);
    a.exp_avg = target(exp_avgs[i], "its exp_avg", numel);
    a.exp_avg_sq = target(exp_avg_sqs[i], "its exp_avg_sq", numel);
    counters[i] = target(steps[i], "its step", 1);
    const double step = static_cast<double>(*counters[i]) + 1;
    a.scale = static_cast<float>(1 / divisor);
    a.beta2 = static_cast<float>(beta2);
    a.share1 = static_cast<float>(1 - beta1), a.share2 = static_cast<float>(1 - beta2);
    a.decay = static_cast<float>(1 - lr * weight_decay);
    a.step_size = static_cast<float>(lr / (1 - std::pow(beta1, step)));
    a.root_factor = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
    a.eps = static_cast<float>(eps);
  }
  const Kernels& run = kernels();
  torch::stable::parallel_for(0, kSlices, 1, [&](int64_t first, int64_t last) {
    for (int64_t slice = first; slice < last; ++slice)
      for (const AdamWArgs& a : updates)
        run.adamw(a, slice_start(a.numel, slice), slice_start(a.numel, slice + 1));
  });
  for (float* counter : counters) *counter += 1;
}

// The sums of slices do not depend on the number of threads, nor does their order.
double norm(const Tensors& gradients, double known) {
  std::vector<const float*> arrays;
  for (const Tensor& gradient : gradients) arrays.push_back(target(gradient, "a gradient", gradient.numel()));
  std::vector<double> sums(kSlices);
  const Kernels& run = kernels();
  torch::stable::parallel_for(0, kSlices, 1, [&](int64_t first, int64_t last) {
    for (int64_t slice = first; slice < last; ++slice)
      for (size_t i = 0; i < arrays.size(); ++i) {
        const int64_t numel = gradients[i].numel(), start = slice_start(numel, slice);
        sums[slice] += run.squares(arrays[i] + start, slice_start(numel, slice + 1) - start);
      }
  });
  double total = known;
  for (const double each : sums) total += each;
  return std::sqrt(total);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) {
  m.impl("norm", TORCH_BOX(&norm));
  m.impl("adamw_", TORCH_BOX(&adamw_));
}

}  // namespace tide
