// A checkpoint ready to run: what every command that computes with a trained model starts from.
#pragma once

#include <memory>
#include <string>

#include "cli/job.h"
#include "cli/placement_option.h"
#include "comm/mesh.h"
#include "data/tokenizer.h"
#include "io/checkpoint.h"
#include "model/transformer.h"
#include "train/run.h"

namespace degu {

// `path` itself when it is a checkpoint, else the newest in the run folder `path`. IoError when
// there is none.
std::string checkpoint_folder(const std::string& path);

struct LoadedModel {
  // Opens the checkpoint; weights are read by `load`, so that a command may change `config`
  // between.
  explicit LoadedModel(const std::string& path);
  // Reads this rank's weights and packs them. Experts are spread over runs of `expert_parallel`
  // ranks as `placement` says. Collective.
  void load(Job& job, int expert_parallel, const PlacementArguments& placement = {});
  // The same values with all experts on this rank.
  std::unique_ptr<ParameterSet> load_whole(Context& context);

  std::string folder;
  CheckpointReader reader;
  RunConfig config;
  Tokenizer tokenizer;
  // After load:
  std::unique_ptr<Mesh> mesh;
  std::unique_ptr<ParameterSet> parameters;
  std::unique_ptr<Transformer> model;
};

}  // namespace degu
