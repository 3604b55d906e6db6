// Threads as ranks in tests, and what went wrong on one of them.
#pragma once

#include <functional>
#include <string>

#include "comm/thread_comm.h"

namespace degu::test {

inline const CommOptions kVerified{.verify = true};

// The message of the error that `body` ended with on some rank; empty when all ended well.
inline std::string failure(int ranks, const std::function<void(Communicator&)>& body,
                           const CommOptions& options = kVerified) {
  try {
    run_as_threads(ranks, body, options);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace degu::test
