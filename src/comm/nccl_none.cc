#include "comm/nccl_comm.h"

namespace degu {

bool nccl_built() {
  return false;
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, Context&) {
  throw DeviceError("this build has no NCCL; install it and configure with DEGU_CUDA=ON");
}

}  // namespace degu
