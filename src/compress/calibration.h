// Calibration tokens on their way through the model, block by block, and what is measured of the
// inputs of each block's matrices.
//
// Tokens are cut into passes of whole sequences, the same on every number of ranks. Each rank
// carries a run of each pass's sequences; experts, and the rows routed to them, are spread over the
// ranks as in training. So each expert's rows arrive in the order of the tokens on any layout, and
// every sum over rows has the same bits.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "compress/block_model.h"
#include "compress/block_problem.h"

namespace degu {

struct CalibrationOptions {
  const TokenDataset* dataset = nullptr;  // prepared shards; their training split is read
  DataConfig data;                        // mixture, sequence length, order
  int64_t tokens = 131072;                // at least; whole sequences
  // Experts that fewer tokens reach fall back; 0: as many as the widest input of an expert, below
  // which its Hessian is singular.
  int64_t min_expert_tokens = 0;
  // What that is: all calibration tokens pass through the expert, or it is rounded to nearest.
  bool fallback_all_tokens = true;
};

// How often calibration reached the experts of one MoE layer.
struct ExpertCoverage {
  int layer = 0;
  int64_t minimum = 0;            // below it an expert fell back
  std::vector<int64_t> tokens_E;  // routed to the expert
  std::vector<char> fell_back_E;  // 1 where below the minimum
};

class Calibration {
 public:
  using Progress = std::function<void()>;  // after every pass

  // Collective over `world`.
  Calibration(Communicator& world, const CalibrationOptions& options, const ModelShape& shape,
              ExpertRange experts);

  int64_t tokens() const { return tokens_; }  // of all ranks
  int64_t passes() const { return static_cast<int64_t>(passes_.size()); }
  int64_t most_tokens() const { return most_tokens_; }  // of one rank in one pass
  // Changes with the tokens and how they are cut.
  std::string fingerprint() const;

  // The residual stream becomes the embedding's rows.
  void embed(Context& context, const Parameter& embedding);
  // The residual stream becomes the block's output.
  void advance(Context& context, BlockModel& block, const Progress& progress);
  // Runs the block on the stream, which stays; fills problem.statistics for its sites. Dense sites'
  // statistics end up on every rank, an expert's on the rank that holds it.
  ExpertCoverage measure(Context& context, BlockModel& block, BlockProblem& problem,
                         const Progress& progress);
  // The Hessian of norm(stream), on every rank.
  SiteStatistics measure_head(Context& context, AnyView gain_D, double eps);

 private:
  struct Pass {
    SequenceBatch batch;
    Tensor x_TD;                       // bf16
    std::vector<int64_t> rank_tokens;  // [ranks]
    int64_t tokens = 0;                // of all ranks
  };
  AnyView gather(Context& context, const Pass& pass, AnyView mine_TD);
  void measure_all_tokens(Context& context, BlockModel& block, BlockProblem& problem,
                          const std::vector<int64_t>& weak);

  Communicator& world_;
  CalibrationOptions options_;
  const ModelShape& shape_;
  ExpertRange experts_;
  int64_t tokens_ = 0;
  int64_t most_tokens_ = 0;
  std::vector<Pass> passes_;
};

}  // namespace degu
