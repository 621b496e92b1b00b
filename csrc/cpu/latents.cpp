// scatter and backward_latents: sums over the tokens that hold a latent.
#include "layout.h"

namespace tide {
namespace {

Tensor packed(const Tensor& given, const char* name, int64_t n_tokens, int64_t d, Element to, const Plan& plan) {
  require_shape(given, name, n_tokens, d);
  const Tensor rows = adjacent_columns(given);
  const Element from = element_of(rows, name);
  const ScalarType type = to == Element::bf16 ? ScalarType::BFloat16 : ScalarType::Float;
  Tensor out = torch::stable::new_empty(rows, {n_tokens * padded_columns(plan)}, type);
  const Kernels& run = kernels();
  torch::stable::parallel_for(0, n_tokens, 16, [&](int64_t first, int64_t last) {
    run.pack(from, to, plan, matrix(rows), d, n_tokens, first, last, out.data_ptr());
  });
  return out;
}

void scatter(const Tensor& values, const Tensor& offsets, const Tensor& tokens, const Tensor& slots,
             const Tensor& rows, Tensor out) {
  require_matrix(out, "out");
  require_matrix(values, "values");
  const int64_t n = out.size(0), d = out.size(1), n_tokens = values.size(0), k = values.size(1);
  const Layout layout = checked_layout(offsets, tokens, slots, n, n_tokens, k);
  const Tensor weights = floats(values);
  const Element element = element_of(rows, "rows");
  const Kernels& run = kernels();
  const Plan plan = run.plan(element, d, n_tokens);
  const Tensor panels = packed(rows, "rows", n_tokens, d, element, plan);
  const ScatterArgs args{plan, d, n_tokens, k, layout, block_capacity(layout, n), float_data(weights),
                         panels.data_ptr(), target(out, "out", n * d)};
  over_latents(layout, n, [&](int64_t first, int64_t last) {
    const Scratch<float> scratch(args.capacity);
    run.scatter(element, args, first, last, scratch.data());
  });
}

Tensor backward_latents(const Tensor& values, const Tensor& offsets, const Tensor& tokens, const Tensor& slots,
                        const Tensor& grad, const Tensor& x_mod, const Tensor& given_W_dec,
                        std::optional<Tensor> extra, std::optional<Tensor> grad_W_dec,
                        std::optional<Tensor> grad_W_enc, std::optional<Tensor> grad_b_enc,
                        std::optional<Tensor> W_enc, std::optional<double> start, std::optional<Tensor> squares) {
  require_matrix(given_W_dec, "W_dec");
  require_matrix(values, "values");
  const Tensor W_dec = adjacent_columns(given_W_dec);
  const Element element = element_of(W_dec, "W_dec");
  const int64_t n = W_dec.size(0), d = W_dec.size(1), n_tokens = values.size(0), k = values.size(1);
  const Layout layout = checked_layout(offsets, tokens, slots, n, n_tokens, k);
  const Tensor weights = floats(values);
  const Kernels& run = kernels();
  WalkArgs args{};
  args.plan = run.plan(element, d, n_tokens);
  args.d = d, args.n_tokens = n_tokens, args.k = k;
  args.layout = layout;
  args.capacity = block_capacity(layout, n);
  args.values = float_data(weights);
  const Tensor grad_panels = packed(grad, "grad", n_tokens, d, element, args.plan);
  args.grad = grad_panels.data_ptr();
  std::optional<Tensor> x_panels, addend;
  if (grad_W_enc.has_value()) {
    x_panels = packed(x_mod, "x_mod", n_tokens, d, element, args.plan);
    args.x_mod = x_panels->data_ptr();
  }
  args.W_dec = matrix(W_dec);
  if (extra.has_value()) {
    require_shape(*extra, "extra", n_tokens, k);
    addend = floats(*extra);
    args.extra = float_data(*addend);
  }
  Tensor grad_values = torch::stable::new_zeros(weights, {n_tokens, k});
  args.grad_values = static_cast<float*>(grad_values.data_ptr());
  args.grad_W_dec = target(grad_W_dec, "grad_W_dec", n * d);
  args.grad_W_enc = target(grad_W_enc, "grad_W_enc", n * d);
  args.grad_b_enc = target(grad_b_enc, "grad_b_enc", n);
  args.replaces = start.has_value();
  args.start = args.replaces ? static_cast<float>(*start) : 0.0f;
  std::optional<Tensor> start_W_dec, start_W_enc;
  if (args.start != 0) {
    start_W_dec = floats(given_W_dec);
    args.start_W_dec = float_data(*start_W_dec);
    if (grad_W_enc.has_value()) {
      require(W_enc.has_value(), "a start of W_enc's gradient needs W_enc");
      require_shape(*W_enc, "W_enc", n, d);
      start_W_enc = floats(*W_enc);
      args.start_W_enc = float_data(*start_W_enc);
    }
  }
  require(!squares.has_value() ||
              (squares->is_cpu() && squares->scalar_type() == ScalarType::Double && squares->numel() == 1),
          "squares has to be a float64 scalar");
  std::vector<double> by_latent(squares.has_value() ? n : 0);
  args.squares = squares.has_value() ? by_latent.data() : nullptr;
  over_latents(layout, n, [&](int64_t first, int64_t last) {
    const Scratch<float> scratch(3 * args.capacity);
    run.walk(element, args, first, last, scratch.data());
  });
  if (squares.has_value()) {
    double& total = *static_cast<double*>(squares->data_ptr());
    total = 0;
    for (const double each : by_latent) total += each;
  }
  return grad_values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) {
  m.impl("scatter", TORCH_BOX(&scatter));
  m.impl("backward_latents", TORCH_BOX(&backward_latents));
}

}  // namespace tide
