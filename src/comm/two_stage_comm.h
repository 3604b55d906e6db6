// Rows between ranks on several nodes, in two stages: within the node to the rank of the receiver's
// local index, then across nodes among the ranks of one local index.
//
//   node 0: a0 a1    node 1: b0 b1        a0's rows for b1:  a0 -> a1 (within), a1 -> b1 (across)
//
// A direct all_to_all_rows sends a message from each rank to each rank of every other node. Here a
// rank sends one to each other node, so messages between nodes are fewer, and larger, by the ranks
// per node. Price: those rows travel within their node first, one exchange per node of the group;
// all rows lie in memory once more on their way; and the ranks of a node tell one another their
// counts beforehand, one small message each.
//
// The stages are waited for within the call, so nothing is computed beside them.
// What arrives has the bytes and the order of the direct call. Everything else, groups split from
// this communicator included, is the inner one's.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "comm/communicator.h"

namespace degu {

// Two stages pay when ranks of a group share nodes, equally many on each, and there are several.
// Else says what is in the way, for "the ranks: <reason>"; empty when nothing is.
// `node_of_rank`: any numbers, equal ones share a node.
std::string two_stage_obstacle(std::span<const int> node_of_rank);

// Over a group of which rank r is on node node_of_rank[r], in any order. Needs equally many ranks
// on each node, else ConfigError; a single node, or one rank on each, is a detour that works.
// Both views of a call are on one device. Rows on their way lie in memory of the communicator's own
// that grows to the most it has needed: what the ranks of a node send to one local index, and what
// this rank sends and receives where ranks of a node do not follow one another. options.verify:
// compares counts before each exchange; without it only a disagreement that changes what a node
// exchanges in all is found. Collective. The first form owns the group; the second's outlives it.
std::unique_ptr<Communicator> make_two_stage_communicator(std::unique_ptr<Communicator> group,
                                                          std::span<const int> node_of_rank,
                                                          const CommOptions& options = {});
std::unique_ptr<Communicator> make_two_stage_communicator(Communicator& group,
                                                          std::span<const int> node_of_rank,
                                                          const CommOptions& options = {});

}  // namespace degu
