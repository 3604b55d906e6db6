#include "train/route_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace degu {

using Json = nlohmann::json;

int64_t moe_layers(const ModelShape& shape) {
  int64_t layers = 0;
  for (int l = 0; l < shape.layers; ++l) layers += shape.is_moe_layer(l) ? 1 : 0;
  return layers;
}

std::string to_text(const RouteLine& line, int top_k) {
  std::string layers;
  const auto k = static_cast<size_t>(top_k);
  for (size_t at = 0; at < line.experts_LK.size(); at += k) {
    layers += fmt::format("{}[{}]", at == 0 ? "" : ",",
                          fmt::join(std::span(line.experts_LK).subspan(at, k), ","));
  }
  return fmt::format("{{\"experts\":[{}],\"position\":{},\"prompt\":{},\"token\":{}}}\n", layers,
                     line.position, line.text, line.token);
}

RouteReader::RouteReader(const std::string& path, const ModelShape& shape)
    : path_(path), shape_(shape), layers_(moe_layers(shape)) {
  if (layers_ == 0) throw DataError("{}: a dense model has no experts to replay", path);
  file_.open(path);
  if (!file_) throw IoError("{}: cannot be read; it is a file of degu generate --routes", path);
}

void RouteReader::fail(const std::string& what) const {
  throw DataError("{}:{}: {}", path_, number_, what);
}

bool RouteReader::skip(int64_t lines) {
  for (; lines > 0; --lines, ++number_) {
    if (!std::getline(file_, line_)) return false;
  }
  return true;
}

bool RouteReader::next(RouteLine& out) {
  if (!std::getline(file_, line_)) return false;
  ++number_;
  constexpr const char* kAsk = "were these routes recorded with this model?";
  try {
    const Json json = Json::parse(line_);
    out.text = json.at("prompt").get<int64_t>();
    out.position = json.at("position").get<int64_t>();
    out.token = json.at("token").get<int32_t>();
    const Json& layers = json.at("experts");
    if (out.token < 0 || out.token >= shape_.vocab) {
      fail(fmt::format("token {} is not in the vocabulary of {}; {}", out.token, shape_.vocab,
                       kAsk));
    }
    out.experts_LK.clear();
    if (layers.empty()) return true;
    if (static_cast<int64_t>(layers.size()) != layers_) {
      fail(fmt::format("{} MoE layers, the model has {}; {}", layers.size(), layers_, kAsk));
    }
    for (const Json& layer : layers) add_layer(layer.get<std::vector<int32_t>>(), out.experts_LK);
  } catch (const Json::exception& error) {
    fail(fmt::format("not a line of routes ({})", error.what()));
  }
  return true;
}

void RouteReader::add_layer(const std::vector<int32_t>& experts,
                            std::vector<int32_t>& experts_LK) const {
  constexpr const char* kAsk = "were these routes recorded with this model?";
  if (static_cast<int>(experts.size()) != shape_.moe.top_k) {
    fail(fmt::format("{} experts for a token, the model takes {}; {}", experts.size(),
                     shape_.moe.top_k, kAsk));
  }
  for (size_t k = 0; k < experts.size(); ++k) {
    if (experts[k] < 0 || experts[k] >= shape_.moe.experts) {
      fail(fmt::format("expert {} of {}; {}", experts[k], shape_.moe.experts, kAsk));
    }
    if (std::count(experts.begin(), experts.end(), experts[k]) > 1) {
      fail(fmt::format("expert {} twice for one token; {}", experts[k], kAsk));
    }
  }
  experts_LK.insert(experts_LK.end(), experts.begin(), experts.end());
}

}  // namespace degu
