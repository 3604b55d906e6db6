// One rank's place in a group that is not there: who it would be, and nothing else. Objects laid
// out over it take the memory that the rank of the real group takes. Exchanges of what lies on a
// device that only plans (DeviceType::kPlan) do nothing, every other one throws CommError.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace degu {

std::unique_ptr<Communicator> make_sizing_communicator(int rank, int size);

}  // namespace degu
