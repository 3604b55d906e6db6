// Where a call enters a backend: the table of entry points for the context's device.
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/cuda/table.h"
#include "kernels/plan/table.h"
#include "tensor/context.h"

namespace degu {

// DeviceError naming `op` when the backend lacks it.
template <class Kernels>
const Kernels& kernels_for(const Context& context, const char* op) {
  if (context.device() == DeviceType::kCuda) return cuda::kernels<Kernels>(op);
  const Kernels& on_host = cpu::kernels_for<Kernels>(context.isa());
  return context.device() == DeviceType::kPlan ? plan::kernels(on_host) : on_host;
}

}  // namespace degu
