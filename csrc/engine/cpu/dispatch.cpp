// Chooses the instruction set once, at the first use.
#include <cstdlib>
#include <cstring>

#include "engine/cpu/kernels.h"

namespace chattn {
namespace baseline {
extern const cpu::Kernels kernels;
}
#if defined(CHATTN_HAVE_X86)
namespace avx2 {
extern const cpu::Kernels kernels;
}
namespace avx512 {
extern const cpu::Kernels kernels;
}
#endif

namespace cpu {
namespace {

const Kernels& choose() {
#if defined(CHATTN_HAVE_X86)
  const char* limit = std::getenv("CHATTN_CPU_ISA");
  const auto allowed = [limit](const char* isa) {
    // The sets are ordered by name: avx2 < avx512, and "baseline" forbids both.
    return !limit || !*limit || std::strcmp(limit, isa) == 0 ||
           (std::strcmp(limit, "avx512") == 0 && std::strcmp(isa, "avx2") == 0);
  };
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return avx512::kernels;
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace cpu
}  // namespace chattn
