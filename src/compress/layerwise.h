// Calibrated quantization, block by block: measure the block's inputs on the stream of calibration
// tokens, choose its codes, write them, and let the stream pass through the block as it will be
// served, so that later blocks are fitted to the inputs they will see.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "compress/quantize.h"

namespace degu {

class LayerwiseQuantizer {
 public:
  // Collective, as are the members.
  LayerwiseQuantizer(Context& context, Communicator& world, CheckpointReader& reader,
                     const ModelShape& shape, const QuantizationInfo& info,
                     const QuantizeOptions& options, const std::string& out);

  // Leaves every tensor in a part of `<out>.layers`; parts that an earlier start with the same
  // arguments left are taken as they are.
  QuantizeReport run();
  // Joins the parts into `out` and removes them.
  void assemble(const nlohmann::json& metadata);

 private:
  std::string part_folder(const std::string& name) const { return parts_ + "/" + name; }
  bool part_stands(const std::string& name);
  Scheme scheme_of(const std::string& name) const;
  std::vector<ParameterSpec> specs_with(const std::string& prefix) const;

  void quantize_embedding();
  void quantize_block(int layer);
  void advance(int layer);
  void quantize_end();
  void read_problem(BlockProblem& problem, const std::string& prefix);
  void write_problem(BlockProblem& problem, const std::string& prefix, const std::string& part,
                     const std::optional<ExpertCoverage>& coverage);
  // Codes from the calibrated method, or by rounding where too little was seen.
  void choose(const SiteStatistics* statistics, int64_t n, std::span<const MatrixTask> tasks);
  void tick(const std::string& note);

  Context& context_;
  Communicator& world_;
  CheckpointReader& reader_;
  const ModelShape& shape_;
  const QuantizationInfo& info_;
  const QuantizeOptions& options_;
  const QuantizationMethod& method_;
  ExpertRange experts_;
  std::vector<ParameterSpec> specs_;
  std::string out_, parts_, job_;
  Calibration calibration_;
  QuantizeReport report_;
  int64_t done_ = 0, total_ = 0;
};

}  // namespace degu
