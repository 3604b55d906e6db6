#include "base/cpu_info.h"

#include <sched.h>

#include <cstdlib>

#include "base/error.h"

namespace degu {

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      break;
  }
  return "avx512_bf16";
}

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return isa_supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::kAvx512Bf16:
      return isa_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == Isa::kPortable;
#endif
}

Isa default_isa() {
  if (const char* forced = std::getenv("DEGU_ISA"); forced != nullptr && *forced != '\0') {
    for (Isa isa : kAllIsas) {
      if (isa_name(isa) != forced) continue;
      if (!isa_supported(isa)) {
        throw ConfigError("DEGU_ISA={}: this processor does not support it; unset DEGU_ISA",
                          forced);
      }
      return isa;
    }
    throw ConfigError("DEGU_ISA={}: unknown; use portable, avx2, avx512 or avx512_bf16", forced);
  }
  Isa best = Isa::kPortable;
  for (Isa isa : kAllIsas) {
    if (isa_supported(isa)) best = isa;
  }
  return best;
}

int physical_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

}  // namespace degu
