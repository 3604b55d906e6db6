// Threads of one process as ranks, for tests that need no mpirun.
#pragma once

#include <functional>

#include "comm/communicator.h"

namespace degu {

// Calls body(rank's communicator) on `ranks` threads and returns when all are done. When one of
// them throws or calls abort, the others stop with a CommError at their present or next collective
// call, and what was thrown first is rethrown here. A rank that returns while another waits for it
// in a collective is such a failure too. Nothing of the communicator may be used after the body
// returned.
void run_as_threads(int ranks, const std::function<void(Communicator&)>& body,
                    const CommOptions& options = {});

}  // namespace degu
