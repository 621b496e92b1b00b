// Which variant runs on this machine.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace tide {

#if defined(__x86_64__)
namespace avx512bf16 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace avx2 { extern const Kernels table; }
#endif
namespace generic { extern const Kernels table; }

namespace {

struct Variant {
  const Kernels* table;
  bool runs;
};

const Kernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const Variant variants[] = {
      {&avx512bf16::table, bf16}, {&avx512::table, avx512}, {&avx2::table, avx2}, {&generic::table, true}};
#else
  const Variant variants[] = {{&generic::table, true}};
#endif
  const char* wanted = std::getenv("TIDE_NATIVE_ISA");
  for (const Variant& variant : variants) {
    if (wanted == nullptr || *wanted == '\0') {
      if (variant.runs) return *variant.table;
    } else if (std::strcmp(wanted, variant.table->name) == 0) {
      if (variant.runs) return *variant.table;
      throw std::runtime_error(std::string("TIDE_NATIVE_ISA=") + wanted + ": this processor does not have it");
    }
  }
  throw std::runtime_error(std::string("TIDE_NATIVE_ISA=") + wanted +
                           ": unknown; use avx512bf16, avx512, avx2 or generic");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace tide

// For Python, by ctypes: the variant that runs, or why none does.
extern "C" __attribute__((visibility("default"))) const char* tide_native_isa() {
  try {
    return tide::kernels().name;
  } catch (const std::exception&) {
    return "";
  }
}

// Whether bfloat16 products are twice as fast as those of float32. Intel's processors have one unit for the former and
// two for the latter, besides tiles that these kernels do not use.
extern "C" __attribute__((visibility("default"))) int tide_native_fast_bfloat16() {
#if defined(__x86_64__)
  return std::strcmp(tide_native_isa(), "avx512bf16") == 0 && __builtin_cpu_is("amd");
#else
  return 0;
#endif
}

extern "C" __attribute__((visibility("default"))) const char* tide_native_error() {
  static std::string reason;
  try {
    tide::kernels();
    return nullptr;
  } catch (const std::exception& error) {
    reason = error.what();
    return reason.c_str();
  }
}
