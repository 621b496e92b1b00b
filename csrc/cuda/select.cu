// select and keep_top_ on CUDA: rows of 16-bit numbers in registers, all others one block per row.
#include "registers.cuh"
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

template <class F, int kChunks, int kMostThreads, bool kCompact>
__global__ void __launch_bounds__(kMostThreads)
    registers_kernel(uint16_t* pre, int64_t stride, int64_t n_rows, int64_t rows, int n, unsigned k, uint16_t* values,
                     int32_t* indices) {
  __shared__ RegistersShared shared;
  const int64_t first = blockIdx.x * rows, last = first + rows < n_rows ? first + rows : n_rows;
  select_rows<F, kChunks, kCompact>(pre, stride, first, last, n, k, values, indices, shared);
}

// A block's first row has no row before to guess from, but a short batch needs as many blocks as possible.
constexpr int64_t kRowsBusy = 1024, kMostRows = 8;

template <class F, int kChunks, int kMostThreads>
void launch_registers(const Tensor& pre, int64_t k, void* values, int32_t* indices) {
  const int64_t n_rows = pre.size(0), n = pre.size(1), fair = n_rows / kRowsBusy;
  const int64_t rows = fair < 1 ? 1 : fair < kMostRows ? fair : kMostRows;
  const auto kernel = indices == nullptr ? registers_kernel<F, kChunks, kMostThreads, false>
                                         : registers_kernel<F, kChunks, kMostThreads, true>;
  const int threads = static_cast<int>((n + kChunks * 8 - 1) / (kChunks * 8) + 31) / 32 * 32;
  kernel<<<static_cast<unsigned>((n_rows + rows - 1) / rows), threads, 0, current_stream(pre)>>>(
      static_cast<uint16_t*>(pre.data_ptr()), pre.stride(0), n_rows, rows, static_cast<int>(n),
      static_cast<unsigned>(k), static_cast<uint16_t*>(values), indices);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class F>
void launch_for(const Tensor& pre, int64_t k, void* values, int32_t* indices) {
  if (pre.size(0) == 0) return;
  if constexpr (sizeof(typename F::Bits) == 2) {
    const bool whole = pre.size(1) % 8 == 0 && (pre.size(0) == 1 || pre.stride(0) % 8 == 0);
    if (whole && reinterpret_cast<uintptr_t>(pre.data_ptr()) % 16 == 0) {
      if (pre.size(1) <= 6 * 1024 * 8) return launch_registers<F, 6, 1024>(pre, k, values, indices);
      if (pre.size(1) <= 18 * 512 * 8) return launch_registers<F, 18, 512>(pre, k, values, indices);
    }
  }
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
