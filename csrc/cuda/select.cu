// select and keep_top_ on CUDA: one block per row.
#include "select.cuh"
#include "tensors.cuh"

namespace tide {
namespace {

template <class F, int kThreads>
__global__ void __launch_bounds__(kThreads)
    select_kernel(typename F::Bits* pre, int64_t stride, int64_t n, unsigned k, typename F::Bits* values,
                  int32_t* indices, bool cached) {
  __shared__ SelectShared shared;
  extern __shared__ uint4 dynamic[];
  const int64_t row = blockIdx.x;
  typename F::Bits* cache = cached ? reinterpret_cast<typename F::Bits*>(dynamic) : nullptr;
  const bool in_place = indices == nullptr;
  select_row<F, kThreads>(pre + row * stride, n, k, in_place ? nullptr : values + row * k,
                          in_place ? nullptr : indices + row * k, cache, shared);
}

template <class F, int kThreads>
void launch(const Tensor& pre, int64_t k, void* values, int32_t* indices) {
  using Bits = typename F::Bits;
  const int64_t n = pre.size(1), row_bytes = (n * static_cast<int64_t>(sizeof(Bits)) + 15) / 16 * 16;
  int device = 0, limit = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  // A longer row is read from memory, that is mostly from cache, in every pass.
  const bool cached = row_bytes + static_cast<int64_t>(sizeof(SelectShared)) + 1024 <= limit;
  const int dynamic = cached ? static_cast<int>(row_bytes) : 0;
  const auto kernel = select_kernel<F, kThreads>;
  STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic));
  kernel<<<static_cast<unsigned>(pre.size(0)), kThreads, dynamic, current_stream(pre)>>>(
      static_cast<Bits*>(pre.data_ptr()), pre.stride(0), n, static_cast<unsigned>(k), static_cast<Bits*>(values),
      indices, cached);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class F>
void launch_for(const Tensor& pre, int64_t k, void* values, int32_t* indices) {
  if (pre.size(0) == 0) return;
  if (pre.size(1) <= 8192) return launch<F, 256>(pre, k, values, indices);
  launch<F, 1024>(pre, k, values, indices);
}

void run(const Tensor& pre, int64_t k, void* values, int32_t* indices) {
  const int64_t n = pre.size(1);
  require(n <= INT32_MAX, "pre has 2^31 columns or more: int32 indices cannot name them");
  require(pre.size(0) <= INT32_MAX, "pre has 2^31 rows or more: pass smaller chunks");
  require(k >= 1 && k <= n, "k is " + std::to_string(k) + ", not from 1 to " + std::to_string(n));
  const DeviceGuard guard(pre.get_device_index());
  switch (pre.scalar_type()) {
    case ScalarType::Float: return launch_for<Float32>(pre, k, values, indices);
    case ScalarType::BFloat16: return launch_for<BFloat16>(pre, k, values, indices);
    case ScalarType::Half: return launch_for<Float16>(pre, k, values, indices);
    default: require(false, "pre has a dtype that is not served: cast it to float32, bfloat16 or float16");
  }
}

std::tuple<Tensor, Tensor> select(const Tensor& given, int64_t k) {
  require(given.dim() == 2, "pre is not a matrix: pass a tensor of two dimensions");
  const Tensor pre = given.size(1) <= 1 || given.stride(1) == 1 ? given : torch::stable::contiguous(given);
  Tensor values = torch::stable::new_empty(pre, {pre.size(0), k});
  Tensor indices = torch::stable::new_empty(pre, {pre.size(0), k}, ScalarType::Int);
  run(pre, k, values.data_ptr(), static_cast<int32_t*>(indices.data_ptr()));
  return {std::move(values), std::move(indices)};
}

void keep_top_(Tensor pre, int64_t k) {
  require(pre.dim() == 2, "pre is not a matrix: pass a tensor of two dimensions");
  require(pre.size(1) <= 1 || pre.stride(1) == 1, "columns of pre do not lie side by side: pass a contiguous tensor");
  require(pre.size(0) <= 1 || pre.stride(0) >= pre.size(1), "rows of pre overlap: pass a contiguous tensor");
  run(pre, k, nullptr, nullptr);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CUDA, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("keep_top_", TORCH_BOX(&keep_top_));
}

}  // namespace tide
