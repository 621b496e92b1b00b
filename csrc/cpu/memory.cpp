// advise_large_pages
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "tensors.h"

namespace tide {
namespace {

void advise_large_pages(Tensor fresh) {
  require(fresh.is_cpu() && fresh.is_contiguous(), "fresh memory has to be contiguous and on the CPU");
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kLarge = 2 << 20;  // only whole large pages inside the tensor: other memory is around it
  const auto begin = reinterpret_cast<uintptr_t>(fresh.data_ptr());
  const uintptr_t end = begin + fresh.numel() * fresh.element_size();
  const uintptr_t first = (begin + kLarge - 1) / kLarge * kLarge, last = end / kLarge * kLarge;
  // If the system refuses, the pages stay as they were.
  if (begin != 0 && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tide_native, CPU, m) { m.impl("advise_large_pages", TORCH_BOX(&advise_large_pages)); }

}  // namespace tide
