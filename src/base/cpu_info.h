// Which instruction set the CPU kernels run on. Floating-point results are promised per instruction
// set, so all ranks of a job agree on one (the least of theirs) before the first kernel runs.
#pragma once

#include <array>
#include <string_view>

namespace degu {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

inline constexpr std::array<Isa, 4> kAllIsas = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512,
                                                Isa::kAvx512Bf16};

std::string_view isa_name(Isa isa);  // "portable", "avx2", "avx512", "avx512_bf16"
bool isa_supported(Isa isa);         // by this processor and operating system
// The best supported set, or the one that the environment variable DEGU_ISA names.
// ConfigError when DEGU_ISA names an unknown or unsupported one.
Isa default_isa();

int physical_cores();  // cores this process may run on (its affinity mask)

}  // namespace degu
