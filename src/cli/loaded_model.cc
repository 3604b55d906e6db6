#include "cli/loaded_model.h"

#include "model/load.h"

namespace degu {

std::string checkpoint_folder(const std::string& path) {
  for (const std::string& candidate : {path, path + "/checkpoints"}) {
    if (std::string found = find_latest(candidate); !found.empty()) return found;
  }
  throw IoError("{}: there is no whole checkpoint here; give a checkpoint or the folder of a run",
                path);
}

LoadedModel::LoadedModel(const std::string& path)
    : folder(checkpoint_folder(path)),
      reader(folder),
      config(checkpoint_config(reader)),
      tokenizer(Tokenizer::from_bytes(reader.attachment("tokenizer.model"), folder)) {}

void LoadedModel::load(Job& job, int expert_parallel, const PlacementArguments& placement) {
  mesh = std::make_unique<Mesh>(job.world(), expert_parallel);
  ExpertRange experts;
  if (config.model.moe.experts > 0) {
    const Range range = mesh->layout().experts(config.model.moe.experts);
    experts = {range.begin, range.size()};
  }
  reader.share(job.world().size() > 1);
  parameters = load_for_inference(
      job.context(), reader, config.model, activation_type(config.train.precision), experts,
      settle_placement(job, reader, config.model, expert_parallel, placement));
  model = std::make_unique<Transformer>(*parameters, ExpertSpread{.group = &mesh->ep()});
}

std::unique_ptr<ParameterSet> LoadedModel::load_whole(Context& context) {
  return load_for_inference(context, reader, config.model, activation_type(config.train.precision),
                            {0, config.model.moe.experts});
}

}  // namespace degu
