// transpose on CUDA. Nothing is read back, so tokens and slots have a place for every index; -1 after the used ones.
#include "tensors.cuh"
#include "transpose.cuh"

namespace tide {
namespace {

constexpr int kThreads = 256, kScanThreads = 1024;
constexpr int64_t kRangeTokens = 64, kCountBytes = 64 << 20;

__global__ void __launch_bounds__(kThreads)
    count_kernel(const int32_t* indices, int64_t n_tokens, int64_t range, int64_t k, int64_t n_latents,
                 unsigned* counts) {
  const int64_t first = blockIdx.x * range, last = first + range < n_tokens ? first + range : n_tokens;
  count_range<kThreads>(indices, first, last, k, n_latents, counts + blockIdx.x * n_latents);
}

__global__ void __launch_bounds__(kScanThreads)
    start_kernel(unsigned* counts, int64_t ranges, int64_t n_latents, int64_t* offsets) {
  __shared__ uint64_t warps[32];
  start_ranges<kScanThreads>(counts, ranges, n_latents, offsets, warps);
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(const int32_t* indices, int64_t n_tokens, int64_t range, int64_t k, int64_t n_latents,
                const int64_t* offsets, unsigned* counts, int32_t* tokens, int32_t* slots) {
  __shared__ int disorder;
  const int64_t first = blockIdx.x * range, last = first + range < n_tokens ? first + range : n_tokens;
  fill_range<kThreads>(indices, first, last, k, n_latents, offsets, counts + blockIdx.x * n_latents, tokens, slots,
                       &disorder);
}

std::tuple<Tensor, Tensor, Tensor> transpose(const Tensor& given, int64_t n_latents) {
  require(given.dim() == 2 && given.scalar_type() == ScalarType::Int, "indices are not a matrix of int32: cast them");
  const Tensor indices = torch::stable::contiguous(given);
  const int64_t n_tokens = indices.size(0), k = indices.size(1);
  require(n_tokens <= INT32_MAX && k <= INT32_MAX && n_latents >= 1 && n_latents <= INT32_MAX,
          "tokens, places and latents have to be fewer than 2^31: pass smaller chunks");
  const DeviceGuard guard(indices.get_device_index());
  // As many ranges as memory for their counts allows, a few tokens each at least.
  const int64_t fitting = kCountBytes / static_cast<int64_t>(n_latents * sizeof(unsigned));
  const int64_t most = fitting > 1 ? fitting : 1;
  const int64_t even = (n_tokens + most - 1) / most, range = even > kRangeTokens ? even : kRangeTokens;
  const int64_t ranges = (n_tokens + range - 1) / range;
  require(range * k <= UINT32_MAX, "a range has 2^32 places or more: pass smaller chunks");
  Tensor offsets = torch::stable::new_empty(indices, {n_latents + 1}, ScalarType::Long);
  Tensor counts = torch::stable::new_zeros(indices, {ranges, n_latents}, ScalarType::Int);
  Tensor tokens = torch::stable::new_empty(indices, {n_tokens * k}, ScalarType::Int);
  Tensor slots = torch::stable::new_empty(indices, {n_tokens * k}, ScalarType::Int);
  torch::stable::fill_(tokens, -1);
  torch::stable::fill_(slots, -1);
  const cudaStream_t stream = current_stream(indices);
  const int32_t* index = static_cast<const int32_t*>(indices.data_ptr());
  unsigned* count = static_cast<unsigned*>(counts.data_ptr());
  int64_t* offset = static_cast<int64_t*>(offsets.data_ptr());
  if (ranges > 0) {
    count_kernel<<<static_cast<unsigned>(ranges), kThreads, 0, stream>>>(index, n_tokens, range, k, n_latents, count);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  start_kernel<<<1, kScanThreads, 0, stream>>>(count, ranges, n_latents, offset);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (ranges > 0) {
    fill_kernel<<<static_cast<unsigned>(ranges), kThreads, 0, stream>>>(
        index, n_tokens, range, k, n_latents, offset, count, static_cast<int32_t*>(tokens.data_ptr()),
        static_cast<int32_t*>(slots.data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {std::move(offsets), std::move(tokens), std::move(slots)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CUDA, m) { m.impl("transpose", TORCH_BOX(&transpose)); }

}  // namespace tide
