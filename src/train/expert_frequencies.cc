#include "train/expert_frequencies.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/error.h"
#include "train/route_file.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kMetricsName = "metrics.jsonl";
constexpr const char* kServerRows = "degu:expert_rows_total";
constexpr int64_t kNewestShare = 10;  // one part of so many

ExpertRows no_rows(const ModelShape& shape) {
  ExpertRows rows_LE(static_cast<size_t>(shape.layers));
  for (int l = 0; l < shape.layers; ++l) {
    if (!shape.is_moe_layer(l)) continue;
    rows_LE[static_cast<size_t>(l)].assign(static_cast<size_t>(shape.moe.experts), 0);
  }
  return rows_LE;
}

// The blocks that have experts, in order.
std::vector<std::vector<int64_t>*> moe_blocks(ExpertRows& rows_LE) {
  std::vector<std::vector<int64_t>*> blocks;
  for (std::vector<int64_t>& rows_E : rows_LE) {
    if (!rows_E.empty()) blocks.push_back(&rows_E);
  }
  return blocks;
}

// Adds one layer's counts; what is wrong with them goes to `fail`.
template <class Fail>
void add_counts(const Json& counts, std::vector<int64_t>& rows_E, Fail&& fail) {
  const auto values = counts.get<std::vector<int64_t>>();
  if (values.size() != rows_E.size()) {
    fail(fmt::format("counts of {} experts, the model has {}", values.size(), rows_E.size()));
  }
  for (size_t e = 0; e < values.size(); ++e) {
    if (values[e] < 0) fail(fmt::format("expert {} took {} rows", e, values[e]));
    rows_E[e] += values[e];
  }
}

ExpertFrequencies from_routes(const std::string& path, const ModelShape& shape) {
  ExpertFrequencies out{.rows_LE = no_rows(shape), .source = {}};
  const std::vector<std::vector<int64_t>*> blocks = moe_blocks(out.rows_LE);
  RouteReader reader(path, shape);
  RouteLine line;
  int64_t tokens = 0;
  while (reader.next(line)) {
    const size_t k = line.experts_LK.size() / blocks.size();
    for (size_t i = 0; i < line.experts_LK.size(); ++i) {
      ++(*blocks[i / k])[static_cast<size_t>(line.experts_LK[i])];
    }
    tokens += line.experts_LK.empty() ? 0 : 1;
  }
  if (tokens == 0) throw DataError("{}: no token in it has recorded experts", path);
  out.source = fmt::format("{} ({} tokens)", path, tokens);
  return out;
}

struct MetricsLine {
  int64_t number = 0;
  int64_t step = 0;
  std::string text;
};

// Lines of steps before `end`, without validations.
std::vector<MetricsLine> step_lines(const std::string& path, int64_t end) {
  std::ifstream file(path);
  if (!file) throw IoError("{}: cannot be read", path);
  std::vector<MetricsLine> lines;
  MetricsLine line;
  while (std::getline(file, line.text)) {
    ++line.number;
    if (line.text.find("\"layers\"") == std::string::npos) continue;
    const Json json = Json::parse(line.text, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() && file.eof()) break;  // torn: the run died, or is writing it
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) {
      throw DataError("{}:{}: not a line of a run's metrics", path, line.number);
    }
    line.step = json["step"].get<int64_t>();
    if (line.step < end) lines.push_back(line);
  }
  return lines;
}

ExpertFrequencies from_metrics(const std::string& path, const ModelShape& shape, int64_t end) {
  const std::vector<MetricsLine> lines = step_lines(path, end);
  if (lines.empty()) throw DataError("{}: no step in it counts rows of experts (layers)", path);
  const size_t wanted = (lines.size() + kNewestShare - 1) / kNewestShare;
  ExpertFrequencies out{.rows_LE = no_rows(shape), .source = {}};
  const std::vector<std::vector<int64_t>*> blocks = moe_blocks(out.rows_LE);
  const size_t first = lines.size() - wanted;
  for (size_t i = first; i < lines.size(); ++i) {
    const auto fail = [&](const std::string& what) {
      throw DataError("{}:{}: {}; is it this model's run?", path, lines[i].number, what);
    };
    try {
      const Json layers = Json::parse(lines[i].text).at("layers");
      if (layers.size() != blocks.size()) {
        fail(fmt::format("{} MoE layers, the model has {}", layers.size(), blocks.size()));
      }
      for (size_t l = 0; l < blocks.size(); ++l) {
        add_counts(layers[l].at("load"), *blocks[l], fail);
      }
    } catch (const Json::exception& error) {
      fail(fmt::format("layers[].load: {}", error.what()));
    }
  }
  out.source = fmt::format("{} (steps {} to {})", path, lines[first].step, lines.back().step);
  return out;
}

// Prometheus' text: degu:expert_rows_total{expert="3",layer="0"} 1204, layers with experts counted
// from 0.
ExpertFrequencies from_server(const std::string& path, const ModelShape& shape) {
  std::ifstream file(path);
  if (!file) throw IoError("{}: cannot be read", path);
  ExpertFrequencies out{.rows_LE = no_rows(shape), .source = {}};
  const std::vector<std::vector<int64_t>*> blocks = moe_blocks(out.rows_LE);
  const std::regex label("(layer|expert)=\"([0-9]{1,9})\"");
  int64_t number = 0;
  size_t found = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (!line.starts_with(kServerRows)) continue;
    size_t layer = blocks.size();
    size_t expert = 0;
    for (std::sregex_iterator at(line.begin(), line.end(), label), end; at != end; ++at) {
      (at->str(1) == "layer" ? layer : expert) = std::stoul(at->str(2));
    }
    const size_t space = line.rfind(' ');
    char* stop = nullptr;
    const double rows = std::strtod(line.c_str() + space + 1, &stop);
    if (layer >= blocks.size() || expert >= blocks[layer]->size() || *stop != '\0' || rows < 0) {
      throw DataError("{}:{}: not a count of a model with {} MoE layers of {} experts", path,
                      number, blocks.size(), shape.moe.experts);
    }
    (*blocks[layer])[expert] = std::llround(rows);
    ++found;
  }
  if (found != blocks.size() * static_cast<size_t>(shape.moe.experts)) {
    throw DataError("{}: {} lines of {}, the model has {} layers of {} experts", path, found,
                    kServerRows, blocks.size(), shape.moe.experts);
  }
  out.source = path + " (a server's metrics)";
  return out;
}

std::optional<ExpertFrequencies> from_calibration(const CheckpointReader& reader,
                                                  const ModelShape& shape) {
  const Json calibration =
      reader.metadata().value(Json::json_pointer("/quantization/calibration"), Json{});
  if (!calibration.contains("experts")) return std::nullopt;
  const std::string place = reader.folder() + "/manifest.json: quantization.calibration";
  const auto fail = [&](const std::string& what) { throw DataError("{}: {}", place, what); };
  ExpertFrequencies out{.rows_LE = no_rows(shape), .source = {}};
  size_t layers = 0;
  try {
    for (const Json& each : calibration.at("experts")) {
      const auto layer = each.at("layer").get<int64_t>();
      if (layer < 0 || layer >= shape.layers || !shape.is_moe_layer(static_cast<int>(layer))) {
        fail(fmt::format("layer {} is no MoE layer of the model", layer));
      }
      add_counts(each.at("tokens"), out.rows_LE[static_cast<size_t>(layer)], fail);
      ++layers;
    }
    if (layers != moe_blocks(out.rows_LE).size()) {
      fail(fmt::format("counts of {} MoE layers, the model has {}", layers,
                       moe_blocks(out.rows_LE).size()));
    }
    out.source = fmt::format("{}'s calibration ({} tokens)", reader.folder(),
                             calibration.at("tokens").get<int64_t>());
  } catch (const Json::exception& error) {
    fail(error.what());
  }
  return out;
}

enum class FrequencyFile { kRoutes, kMetrics, kServer };

FrequencyFile kind_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!file) {
    throw IoError(
        "{}: cannot be read; measured frequencies are a file of `degu generate --routes`, a run's "
        "folder or its metrics.jsonl, or what a server's /metrics said",
        path);
  }
  std::getline(file, line);
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (line.starts_with("#") || line.starts_with("degu:")) return FrequencyFile::kServer;
  if (json.is_object() && json.contains("step")) return FrequencyFile::kMetrics;
  if (json.is_object() && json.contains("experts")) return FrequencyFile::kRoutes;
  throw DataError(
      "{}:1: neither routes of `degu generate --routes` nor metrics of a run or a server", path);
}

}  // namespace

ExpertFrequencies read_frequencies(const std::string& path, const ModelShape& shape) {
  constexpr int64_t kAll = std::numeric_limits<int64_t>::max();
  if (moe_layers(shape) == 0) {
    throw DataError("{}: a dense model has no experts that took rows", path);
  }
  if (!fs::is_directory(path)) {
    switch (kind_of(path)) {
      case FrequencyFile::kRoutes:
        return from_routes(path, shape);
      case FrequencyFile::kMetrics:
        return from_metrics(path, shape, kAll);
      case FrequencyFile::kServer:
        return from_server(path, shape);
    }
  }
  if (fs::exists(path + "/manifest.json")) {
    const CheckpointReader reader(path);
    if (auto own = checkpoint_frequencies(reader, shape)) return *std::move(own);
    throw DataError(
        "{}: this checkpoint was neither calibrated nor lies in a run's folder, so it does not "
        "know its experts' frequencies",
        path);
  }
  if (!fs::exists(path + "/" + kMetricsName)) {
    throw DataError("{}: neither a run's folder (no {}) nor a checkpoint", path, kMetricsName);
  }
  return from_metrics(path + "/" + kMetricsName, shape, kAll);
}

std::optional<ExpertFrequencies> checkpoint_frequencies(const CheckpointReader& reader,
                                                        const ModelShape& shape) {
  if (moe_layers(shape) == 0) return std::nullopt;
  if (auto calibrated = from_calibration(reader, shape)) return calibrated;
  const fs::path folder = fs::path(reader.folder()).lexically_normal();
  const fs::path checkpoints =
      folder.has_filename() ? folder.parent_path() : folder.parent_path().parent_path();
  if (checkpoints.filename() != "checkpoints") return std::nullopt;
  const std::string metrics = (checkpoints.parent_path() / kMetricsName).string();
  if (!fs::exists(metrics)) return std::nullopt;
  const auto end = reader.metadata().value("next_step", std::numeric_limits<int64_t>::max());
  return from_metrics(metrics, shape, end);
}

}  // namespace degu
