// One table of properties that every communicator must have, whatever carries its bytes. Cases
// throw on a violation (assertion macros are not safe on threads) and run on any number of ranks.
#pragma once

#include <span>

#include "comm/communicator.h"

namespace degu::test {

struct CommCase {
  const char* name;
  void (*run)(Communicator&);
};

std::span<const CommCase> comm_cases();

}  // namespace degu::test
