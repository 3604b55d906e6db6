// How the processes of a job that no launcher connects find each other: by a file in a folder that
// all of them see.
//
// Rank 0 listens, writes <folder>/degu-<name>.address (readable by its owner alone: addresses, port
// and a token drawn at random), and collects the others, who look for the file, connect and present
// the token, their rank and where they listen themselves. Rank 0 hands that table to all and
// removes the file; then each pair of ranks makes one connection. A file that an earlier job left
// is found out by a connection or a token that is refused, and looked at again.
//
// Who does not know the token gets nothing but a closed connection, within seconds. What travels is
// neither encrypted nor signed: the network is trusted as it is for MPI.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "comm/socket.h"

namespace degu {

// One process's part in a job. Equal on all ranks but for `rank`.
struct SocketJob {
  std::string folder;  // that all ranks see
  std::string name;    // of the job among those that use the folder: letters, digits, ".-_"
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds timeout{300'000};  // until all must be there
};

std::string address_file(const SocketJob& job);

struct Links {
  // One per rank, this rank's own empty. `control` is for what may come at any time; ranks have it
  // to rank 0 alone, rank 0 to all.
  std::vector<Socket> control;
  std::vector<Socket> data;
};

// Collective over the job. CommError when not all are there in time, when two processes claim one
// rank, or when ranks disagree about the size; IoError when rank 0 cannot write the file. Each is
// one line with the remedy, the same on all ranks that can still be told.
Links meet(const SocketJob& job);

}  // namespace degu
