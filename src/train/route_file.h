// Files of routes, one JSON line per token (docs/inference.md): what `degu generate --routes` and
// `train.record_routes` write.
#pragma once

#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "shape/model_shape.h"

namespace degu {

struct RouteLine {
  int64_t text = 0;      // `prompt` in the file: number of the prompt, or of the run's sequence
  int64_t position = 0;  // in the text
  int32_t token = 0;
  std::vector<int32_t> experts_LK;  // by MoE layer and slot, best first; empty: not recorded
};

// The line with its end.
std::string to_text(const RouteLine& line, int top_k);

int64_t moe_layers(const ModelShape& shape);

class RouteReader {
 public:
  // DataError for a dense model, IoError when the file cannot be read.
  RouteReader(const std::string& path, const ModelShape& shape);

  // The next line; false at the end. DataError with file:line for what is no route of a model of
  // this shape: another number of MoE layers or of experts per token, an expert or token that it
  // does not have, the same expert twice.
  bool next(RouteLine& out);
  // Passes over so many lines without looking at them; false when the file ends before.
  bool skip(int64_t lines);
  int64_t lines_read() const { return number_; }
  [[noreturn]] void fail(const std::string& what) const;  // DataError: file:line: what

 private:
  void add_layer(const std::vector<int32_t>& experts, std::vector<int32_t>& experts_LK) const;

  std::string path_;
  ModelShape shape_;
  int64_t layers_;
  std::ifstream file_;
  std::string line_;
  int64_t number_ = 0;
};

}  // namespace degu
