// Which ranks share a node.
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"

namespace degu {

// Names this machine: equal for processes that share it. No spaces.
std::string node_name();

// Where the ranks of a group run, one entry per rank. Nodes and processes are numbered from 0 in
// the order of their first ranks.
struct RankHomes {
  std::vector<int> node;
  std::vector<int> process;  // threads as ranks share one
};

// What the machines say. Collective.
RankHomes find_homes(Communicator& comm);

// The node of each rank, as exchanges see it: find_homes' unless DEGU_RANKS_PER_NODE=n says that
// each n ranks that follow one another are a node of their own (to try on one machine what happens
// on several). Cores and GPUs are shared out by find_homes alone. ConfigError when the variable is
// not a number above 0 or differs between ranks. Collective.
std::vector<int> exchange_nodes(Communicator& comm);

int count_nodes(const std::vector<int>& node_of_rank);

}  // namespace degu
