// norm and adamw_: the two passes of a training step over all gradients.
#include <cmath>

#include "glibc.h"
#include "tensors.h"

namespace tide {
namespace {

using Tensors = std::vector<Tensor>;

// Elements of a tensor that a thread takes at a time; the sums of norms depend on it, so it does not depend on threads.
constexpr int64_t kPiece = 16384;

struct Piece {
  size_t tensor;
  int64_t first, last;
};

std::vector<Piece> pieces_of(const Tensors& tensors) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i)
    for (int64_t first = 0, numel = tensors[i].numel(); first < numel; first += kPiece)
      pieces.push_back({i, first, first + kPiece < numel ? first + kPiece : numel});
  return pieces;
}

void adamw_(const Tensors& parameters, const Tensors& gradients, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
            const Tensors& steps, const std::vector<double>& lrs, double beta1, double beta2, double weight_decay,
            double eps, double divisor) {
  const size_t count = parameters.size();
  require(gradients.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count &&
              steps.size() == count && lrs.size() == count,
          "adamw_ needs a gradient, two moments, a step and a learning rate for each parameter");
  std::vector<AdamWArgs> updates(count);
  std::vector<float*> counters(count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t numel = parameters[i].numel();
    AdamWArgs& a = updates[i];
    a.parameter = target(parameters[i], "a parameter", numel);
    a.gradient = target(gradients[i], "its gradient", numel);
    a.exp_avg = target(exp_avgs[i], "its exp_avg", numel);
    a.exp_avg_sq = target(exp_avg_sqs[i], "its exp_avg_sq", numel);
    counters[i] = target(steps[i], "its step", 1);
    const double step = static_cast<double>(*counters[i]) + 1;
    a.scale = static_cast<float>(1 / divisor);
    a.beta2 = static_cast<float>(beta2);
    a.share1 = static_cast<float>(1 - beta1), a.share2 = static_cast<float>(1 - beta2);
    a.decay = static_cast<float>(1 - lrs[i] * weight_decay);
    a.step_size = static_cast<float>(lrs[i] / (1 - std::pow(beta1, step)));
    a.root_factor = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
    a.eps = static_cast<float>(eps);
  }
  const Kernels& run = kernels();
  const std::vector<Piece> pieces = pieces_of(parameters);
  torch::stable::parallel_for(0, pieces.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) run.adamw(updates[pieces[p].tensor], pieces[p].first, pieces[p].last);
  });
  for (float* counter : counters) *counter += 1;
}

// The sums of pieces do not depend on the number of threads, nor does their order.
double norm(const Tensors& gradients, double known) {
  std::vector<const float*> arrays;
  for (const Tensor& gradient : gradients) arrays.push_back(target(gradient, "a gradient", gradient.numel()));
  const std::vector<Piece> pieces = pieces_of(gradients);
  std::vector<double> sums(pieces.size());
  const Kernels& run = kernels();
  torch::stable::parallel_for(0, pieces.size(), 4, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p)
      sums[p] = run.squares(arrays[pieces[p].tensor] + pieces[p].first, pieces[p].last - pieces[p].first);
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
