// Loss and every gradient of one batch of given tokens, for comparison with other implementations
// (scripts/check_vs_torch.py).
#pragma once

#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "tensor/tensor.h"
#include "train/train_config.h"

namespace degu {

struct GradientProbe {
  double loss = 0;      // mean cross-entropy over all targets, nats
  double aux_loss = 0;  // weighted, as added to the loss
  double z_loss = 0;
  std::vector<std::pair<std::string, Tensor>> gradients;  // fp32, by tensor name
};

// tokens_NS: [n, S + 1]; the last S of each row are the targets of the first S. Balance groups and
// units as in `config`, which they must fit. One rank.
GradientProbe probe_gradients(const RunConfig& config, CheckpointReader& checkpoint,
                              View<const int32_t> tokens_NS, Context& context);

}  // namespace degu
