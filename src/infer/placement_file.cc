#include "infer/placement_file.h"

#include <filesystem>

#include "config/yaml.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

constexpr const char* kRemedy = "write one for this model with `degu plan --serve CKPT --out FILE`";

struct PlacedLayer {
  int64_t layer = -1;
  std::vector<int64_t> experts;

  void fields(Fields& f) {
    f("layer", layer, "number of the block, from 0");
    f("experts", experts,
      "its experts: the first experts / ranks of them on rank 0, the next on rank 1, …");
  }
  void check() const {
    std::vector<bool> seen(experts.size(), false);
    for (int64_t e : experts) {
      if (e < 0 || e >= std::ssize(experts)) {
        throw ConfigError("experts names {}; a list of {} holds 0 to {}, each once", e,
                          experts.size(), std::ssize(experts) - 1);
      }
      if (seen[static_cast<size_t>(e)]) {
        throw ConfigError("experts names {} twice; each of the {} stands there once", e,
                          experts.size());
      }
      seen[static_cast<size_t>(e)] = true;
    }
  }
};

struct Content {
  int ranks = 1;
  std::string frequencies;
  std::vector<PlacedLayer> layers;

  void fields(Fields& f) {
    f("ranks", ranks, "ranks that it was chosen for");
    f("frequencies", frequencies, "what it was chosen by");
    f("layers", layers, "every layer with experts");
  }
  void check() const {
    if (ranks < 1) throw ConfigError("ranks is {}, must be at least 1", ranks);
  }
};

}  // namespace

std::string placement_text(const PlacementFile& file, const ModelShape& shape) {
  Content content{.ranks = file.ranks, .frequencies = file.source, .layers = {}};
  for (int l = 0; l < shape.layers; ++l) {
    if (!shape.is_moe_layer(l)) continue;
    const std::vector<int32_t> expert_S = file.placement.experts_by_slot(l, shape.moe.experts);
    content.layers.push_back({.layer = l, .experts = {expert_S.begin(), expert_S.end()}});
  }
  return to_yaml(content);
}

PlacementFile parse_placement(const std::string& text, const std::string& name,
                              const ModelShape& shape) {
  const auto content = read_config<Content>(YamlDocument::from_text(text, name));
  PlacementFile file{.ranks = content.ranks, .source = content.frequencies, .placement = {}};
  std::vector<std::vector<int32_t>>& slot_LE = file.placement.slot_LE;
  slot_LE.resize(static_cast<size_t>(shape.layers));
  for (const PlacedLayer& layer : content.layers) {
    if (layer.layer < 0 || layer.layer >= shape.layers ||
        !shape.is_moe_layer(static_cast<int>(layer.layer))) {
      throw ConfigError("{}: layer {} has no experts in a model of {} layers; {}", name,
                        layer.layer, shape.layers, kRemedy);
    }
    if (std::ssize(layer.experts) != shape.moe.experts) {
      throw ConfigError("{}: layer {} places {} experts, the model has {}; {}", name, layer.layer,
                        layer.experts.size(), shape.moe.experts, kRemedy);
    }
    std::vector<int32_t>& slot_E = slot_LE[static_cast<size_t>(layer.layer)];
    if (!slot_E.empty()) throw ConfigError("{}: layer {} stands there twice", name, layer.layer);
    slot_E.resize(layer.experts.size());
    for (size_t s = 0; s < slot_E.size(); ++s) {
      slot_E[static_cast<size_t>(layer.experts[s])] = static_cast<int32_t>(s);
    }
  }
  for (int l = 0; l < shape.layers; ++l) {
    if (shape.is_moe_layer(l) && slot_LE[static_cast<size_t>(l)].empty()) {
      throw ConfigError("{}: layer {} is missing, the model has experts there; {}", name, l,
                        kRemedy);
    }
  }
  return file;
}

PlacementFile read_placement(const std::string& path, const ModelShape& shape) {
  if (!std::filesystem::is_regular_file(path)) {
    throw IoError(
        "{}: is no file; --placement takes contiguous, auto or a file of `degu plan --serve --out`",
        path);
  }
  return parse_placement(read_file(path), path, shape);
}

}  // namespace degu
