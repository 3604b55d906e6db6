// Threads of one process as the ranks of a job that sockets connect, in tests.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "comm/socket_comm.h"

namespace degu::test {

// One entry per rank: what it threw; empty when all went well. A rank that fails ends its
// communicator in good order, whereupon those who wait for it fail within seconds.
inline std::vector<std::string> failures(const std::vector<SocketJob>& ranks,
                                         const std::function<void(Communicator&)>& body,
                                         const CommOptions& options = {.verify = false}) {
  std::vector<std::string> said(ranks.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        const auto comm = make_socket_communicator(ranks[i], options);
        try {
          body(*comm);
        } catch (const std::exception& error) {
          said[i] = error.what();
        }
      } catch (const std::exception& error) {
        said[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return said;
}

inline std::vector<SocketJob> job_of(int size, const std::string& folder) {
  std::vector<SocketJob> ranks;
  for (int r = 0; r < size; ++r) {
    ranks.push_back({.folder = folder,
                     .name = "test",
                     .rank = r,
                     .size = size,
                     .timeout = std::chrono::seconds(60)});
  }
  return ranks;
}

inline bool none(const std::vector<std::string>& said) {
  return std::all_of(said.begin(), said.end(), [](const std::string& s) { return s.empty(); });
}

}  // namespace degu::test
