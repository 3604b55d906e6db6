// Are the bits the same on every path? (design promise: a token's logits and experts depend on its
// own past alone.)
//
// Sequences of random tokens, with lengths around page and tile boundaries, go through the training
// forward (whole sequences, activations saved for backward), and then through serving's passes in
// every way that serving may cut, batch and place them. Every row of logits and every token's
// chosen experts must equal the training forward's, bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "infer/runner.h"

namespace degu {

struct ParityOptions {
  uint64_t seed = 1;
  int sequences = 8;      // per round
  int rounds = 2;         // each with sequences of its own
  int64_t longest = 200;  // tokens
  std::vector<int> threads = {1, 2};
  DType kv_type = DType::kBF16;  // fp32, bf16 or int8: as the cache to be used
};

// One way through the model. A comparison is one token's logits, or its experts in one MoE layer.
struct ParityPath {
  std::string name;
  int64_t comparisons = 0;
  int64_t mismatches = 0;
  std::string first_mismatch;  // where, for people
};

struct ParityReport {
  std::vector<ParityPath> paths;

  int64_t comparisons() const;
  int64_t mismatches() const;
  void add(const ParityReport& other);  // path by path
};

// All paths of a model whose experts are all on this rank, on the instruction set or accelerator of
// `context`; on the CPU with each number of threads.
ParityReport check_parity(Context& context, ParameterSet& parameters, const ParityOptions& options);

// One more path: experts spread over `group`, each rank with sequences of its own, against the
// training forward with all experts on one rank. `whole` holds all experts, `part` this rank's of
// the same values. Collective; counts are this rank's.
ParityReport check_expert_parity(Communicator& group, Context& context, ParameterSet& whole,
                                 ParameterSet& part, const ParityOptions& options);

}  // namespace degu
