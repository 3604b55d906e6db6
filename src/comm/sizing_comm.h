// One rank's place in a group that is not there: who it would be, and nothing else. Objects laid
// out over it take the memory that the rank of the real group takes; every exchange throws
// CommError.
#pragma once

#include <memory>

#include "comm/communicator.h"

namespace degu {

std::unique_ptr<Communicator> make_sizing_communicator(int rank, int size);

}  // namespace degu
