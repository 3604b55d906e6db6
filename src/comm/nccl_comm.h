// Collectives on GPU memory by NCCL: one rank per GPU, on a stream of their own beside the
// context's (comm/nccl_stream.h). A call's work comes after all that the context's stream was given
// before the call, and before all that it is given after `wait`. Nothing here waits for the device.
//
// The groups of a process, split from one communicator, share that stream, so their collectives run
// one after the other in the order of the calls. Ranks make the calls of a group in one order, and
// those of several groups in the order of the one program that all run: no rank comes to wait for a
// collective that another has put behind one that waits for the first. The price: a small exchange
// waits for a large reduction that was asked for before it.
//
// Sums in tree order are made of an exchange and a sum of our own in that order (comm/tree.h),
// since NCCL's own order depends on its algorithm; Order::kAny in fp32, fp64 and integers is
// NCCL's. What neither carries (kMax, kMin; tree order in fp64 and integers) goes by way of the
// host.
//
// A collective that fails, or that a rank never enters, ends the process with one line that names
// it, the rank and the size, after DEGU_NCCL_TIMEOUT seconds (600).
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace degu {

// Whether this build has NCCL.
bool nccl_built();

// GPU memory through which sums in tree order pass, of all groups of a process; NCCL's own memory
// comes beside it.
inline constexpr size_t kNcclSumBytes = size_t{128} << 20;

// `control` carries NCCL's id, views on the host, and all small host data; it outlives the
// communicator. Collective. DeviceError without NCCL in the build, CommError when NCCL cannot
// start.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, Context& context);

}  // namespace degu
