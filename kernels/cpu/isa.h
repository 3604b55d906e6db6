// One source, one object per instruction set.
//
// Sources listed under degu_isa_sources (kernels/CMakeLists.txt) are compiled once per instruction
// set, with the flags of that set and DEGU_THIS_ISA naming it. Everything in such a source sits in
// an unnamed namespace, except its table of entry points:
//
//   // kernels/cpu/rmsnorm.h
//   struct RmsNormKernels { void (*forward)(Context&, …); void (*backward)(Context&, …); };
//   // kernels/cpu/rmsnorm.cc, compiled per instruction set
//   template <> const RmsNormKernels cpu::Table<RmsNormKernels, cpu::kThisIsa>::value = {&forward,
//   &backward};
//   // kernels/api/rmsnorm.cc, after the checks
//   cpu::kernels_for<RmsNormKernels>(context.isa()).forward(context, …);
#pragma once

#include "base/cpu_info.h"

namespace degu::cpu {

template <class Kernels, Isa isa>
struct Table {
  static const Kernels value;
};

template <class Kernels>
const Kernels& kernels_for(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return Table<Kernels, Isa::kPortable>::value;
    case Isa::kAvx2:
      return Table<Kernels, Isa::kAvx2>::value;
    case Isa::kAvx512:
      return Table<Kernels, Isa::kAvx512>::value;
    case Isa::kAvx512Bf16:
      break;
  }
  return Table<Kernels, Isa::kAvx512Bf16>::value;
}

#ifdef DEGU_THIS_ISA
inline constexpr Isa kThisIsa = Isa::DEGU_THIS_ISA;
#endif

}  // namespace degu::cpu
