// The operators' names and signatures; cpu/ and cuda/ implement them. tide_kernels/native.py is the only caller.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(tide_native, m) {
  // Values in the dtype of pre, indices int32, ascending; the contract is that of tide_kernels.reference.select.
  m.def("select(Tensor pre, int k) -> (Tensor, Tensor)");
  // select(x W^T + b, k) into values and indices [tokens, k], and how many tokens are done: the others need a whole
  // product, since more than a share of the latents may be selected after a screen in int8, and then in bfloat16.
  m.def(
      "screened(Tensor x, Tensor W, Tensor? b, float int8_share, float bf16_share, Tensor(a!) values, "
      "Tensor(b!) indices) -> int");
  m.def("keep_top_(Tensor(a!) pre, int k) -> ()");
  // The contracts are those of tide_kernels.thresholds.
  m.def(
      "select_above(Tensor pre, Tensor threshold, Tensor? group, Tensor? cut, int capacity) -> (Tensor, Tensor, Tensor)");
  m.def("keep_above(Tensor pre, Tensor threshold, Tensor? group, Tensor? cut, Tensor(a!) out) -> Tensor");
  // select_above(x W^T + b, threshold, group, None, capacity) into values and indices [tokens, capacity] and counts, as
  // `screened`.
  m.def(
      "screened_above(Tensor x, Tensor W, Tensor? b, Tensor threshold, Tensor? group, float int8_share, "
      "float bf16_share, Tensor(a!) values, Tensor(b!) indices, Tensor(c!) counts) -> int");
  m.def("key_histogram_(Tensor pre, Tensor(a!) counts, int shift, Tensor? high) -> ()");
  m.def("count_equal(Tensor pre, Tensor value) -> Tensor");
  // At the places where u is within half a bandwidth of its threshold: sums += grad_values and near += 1.
  m.def(
      "add_near_places(Tensor grad_values, Tensor u, Tensor offsets, Tensor tokens, Tensor slots, Tensor threshold, "
      "Tensor? group, float bandwidth, Tensor(a!) sums, Tensor(b!) near) -> ()");
  m.def("gather(Tensor values, Tensor indices, Tensor W) -> Tensor");
  m.def("sampled(Tensor rows, Tensor W, Tensor indices) -> Tensor");
  // offsets [n_latents + 1] int64, tokens and slots [used places] int32: the places of a code by (latent, token).
  m.def("transpose(Tensor indices, int n_latents) -> (Tensor, Tensor, Tensor)");
  // Of the values of a code, rows 2i and 2i + 1 a pair: see tide_kernels/losses.py.
  m.def("pair_differences(Tensor values, Tensor indices) -> (Tensor, Tensor)");
  m.def(
      "scatter(Tensor values, Tensor offsets, Tensor tokens, Tensor slots, Tensor rows, Tensor(a!) out) -> ()");
  // With `start`, what the gradients hold is replaced: those of W_dec and W_enc begin as start times the weight, that
  // of the bias as 0.
  // squares, a float64 scalar, becomes the sum of the squares of the finished gradients.
  m.def(
      "backward_latents(Tensor values, Tensor offsets, Tensor tokens, Tensor slots, Tensor grad, Tensor x_mod, "
      "Tensor W_dec, Tensor? extra, Tensor(a!)? grad_W_dec, Tensor(b!)? grad_W_enc, Tensor(c!)? grad_b_enc, "
      "Tensor? W_enc, float? start, Tensor(d!)? squares) -> Tensor");
  // The Euclidean norm of these gradients and of others, the sum of whose squares is known.
  m.def("norm(Tensor[] gradients, float known) -> float");
  // One step of AdamW with decoupled weight decay; gradients are divided first.
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, float[] lrs, float beta1, float beta2, float weight_decay, float eps, "
      "float divisor) -> ()");
}
