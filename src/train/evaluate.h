// Loss on a fixed validation set, the same bits on every layout of ranks.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "data/reader.h"
#include "train/pass.h"

namespace degu {

struct DomainLoss {
  std::string name;
  double loss = 0;  // nats per counted token
  double bits_per_byte = 0;
  int64_t tokens = 0;
};

struct ValidationResult {
  double loss = 0;  // over all counted targets of all domains
  double bits_per_byte = 0;
  std::vector<DomainLoss> domains;
};

class Evaluator {
 public:
  // `plan.micro_sequences` sequences per pass. All arguments outlive the evaluator.
  Evaluator(Context& context, ParameterSet& parameters, const Transformer& model,
            const StepPlan& plan, const ValidationSet& data, Communicator& world);

  ValidationResult run();  // collective

 private:
  Context& context_;
  ParameterSet& parameters_;
  const Transformer& model_;
  const ValidationSet& data_;
  Communicator& world_;
  int64_t per_pass_;
  Pass pass_;
  SequenceBatch batch_;
};

}  // namespace degu
