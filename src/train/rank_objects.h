// All that one rank lays out to train, for a world that need not be there.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "train/gradient_norm.h"
#include "train/pass.h"
#include "train/regions.h"

namespace degu {

class RankObjects {
 public:
  // On the CPU, where pages that nobody touches take no memory, or on a device that only plans.
  // ConfigError as plan_steps and Layout.
  RankObjects(const RunConfig& config, const Layout& layout, DeviceType device);

  const ParameterSet& parameters() const { return parameters_; }
  const Pass& training() const { return training_; }
  const Pass& evaluation() const { return evaluation_; }
  const TrainedRegions& regions() const { return regions_; }
  const GradientNorm& norm() const { return norm_; }

  // Makes the calls of a training pass and of a validation pass with as many rows as there can be;
  // on a device that only plans, for nothing is computed. The most scratch memory that they held at
  // once; what the kernels of a device take beside it is not in it.
  size_t rehearse();

 private:
  Context context_;
  std::unique_ptr<Communicator> expert_group_;
  StepPlan plan_;
  ParameterSet parameters_;
  Transformer model_;
  Pass training_;
  Pass evaluation_;
  TrainedRegions regions_;
  GradientNorm norm_;
};

}  // namespace degu
