#include "compress/calibration.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "kernels/api/rmsnorm.h"
#include "kernels/api/swiglu.h"

namespace degu {
namespace {

constexpr int64_t kPassTokens = 8192;  // of all ranks together

// hessian_NDD[n] += sum over the rows x of group n of x^T x.
void add_outer(Context& context, AnyView x_RD, std::span<const int64_t> offsets,
               AnyView hessian_NDD) {
  const UnitSegments segments{.offsets = offsets,
                              .groups = static_cast<int64_t>(offsets.size()) - 1,
                              .slots = 1,
                              .units = 1};
  grouped_gemm_dw(context, x_RD, x_RD, segments, hessian_NDD, Write::kAdd);
}

// What the matrices of a site read, after a pass over `tokens` tokens.
AnyView site_input(const BlockActivations& a, const std::string& site, int64_t tokens) {
  if (site == "attention") return a.attention.h_TD.rows(0, tokens);
  if (site == "attention.out") {
    const AnyView out = a.attention.out_THA;
    return out.reshaped({out.dim(0), out.dim(1) * out.dim(2)}).rows(0, tokens);
  }
  if (site == "ffn" || site == "shared") return a.h_TD.rows(0, tokens);
  if (site == "ffn.act") return a.dense.act_TF.rows(0, tokens);
  if (site == "shared.act") return a.moe.shared.act_TF.rows(0, tokens);
  const int64_t rows = a.moe.dispatch.only_chunk().rows;
  return (site == "experts" ? a.moe.experts.x_RD : a.moe.experts.act_RF).rows(0, rows);
}

int64_t site_width(const ModelShape& s, const std::string& site) {
  if (site == "attention.out") return int64_t{s.heads} * s.head_width;
  if (site == "ffn.act") return s.ffn_width;
  if (site == "experts.act") return s.moe.expert_width;
  if (site == "shared.act") return int64_t{s.moe.shared_experts} * s.moe.expert_width;
  return s.width;
}

}  // namespace

Calibration::Calibration(Communicator& world, const CalibrationOptions& options,
                         const ModelShape& shape, ExpertRange experts)
    : world_(world), options_(options), shape_(shape), experts_(experts) {
  if (options.dataset->vocab_size() != shape.vocab) {
    throw ConfigError("calibration: the shards' tokenizer has {} tokens, the model {}",
                      options.dataset->vocab_size(), shape.vocab);
  }
  const int64_t length = options_.data.sequence_length;
  const int64_t sequences = (options_.tokens + length - 1) / length;
  const int64_t per_pass = std::max<int64_t>(1, kPassTokens / length);
  const BatchReader reader(*options.dataset, options_.data, per_pass);
  int64_t available = 0;
  for (const BatchReader::Part& part : reader.parts()) available += part.windows;
  if (sequences > available) {
    log_warn("calibration: {} tokens were asked for, the shards hold {}; some are read again",
             sequences * length, available * length);
  }
  tokens_ = sequences * length;
  const int ranks = world.size();
  for (int64_t first = 0; first < sequences; first += per_pass) {
    const int64_t count = std::min(per_pass, sequences - first);
    Pass& pass = passes_.emplace_back();
    for (int r = 0; r < ranks; ++r) {
      const int64_t begin = count * r / ranks;
      const int64_t end = count * (r + 1) / ranks;
      pass.rank_tokens.push_back((end - begin) * length);
      if (r == world.rank()) reader.read_global(first + begin, end - begin, pass.batch);
    }
    pass.tokens = count * length;
    pass.x_TD = Tensor(DType::kBF16, {std::max<int64_t>(pass.batch.tokens(), 1), shape.width});
    most_tokens_ =
        std::max(most_tokens_, *std::max_element(pass.rank_tokens.begin(), pass.rank_tokens.end()));
  }
}

std::string Calibration::fingerprint() const {
  std::string mixture;
  for (const MixturePart& part : options_.data.mixture) {
    mixture += fmt::format(" {}={}", part.name, part.weight);
  }
  return fmt::format("{} tokens {} length {} seed {} confined {} minimum {} fallback {}{}",
                     options_.dataset->fingerprint(), tokens_, options_.data.sequence_length,
                     options_.data.seed, options_.data.confine_documents,
                     options_.min_expert_tokens, options_.fallback_all_tokens, mixture);
}

void Calibration::embed(Context& context, const Parameter& embedding) {
  for (Pass& pass : passes_) {
    degu::embed(context, embedding, pass.batch.tokens_T,
                pass.x_TD.view().rows(0, pass.batch.tokens()));
  }
}

void Calibration::advance(Context& context, BlockModel& block, const Progress& progress) {
  for (Pass& pass : passes_) {
    const AnyView x = pass.x_TD.view().rows(0, pass.batch.tokens());
    block.forward(context, pass.batch, x);
    const AnyView y = block.output(pass.batch.tokens());
    if (y.bytes() > 0) std::memcpy(x.data, y.data, y.bytes());
    progress();
  }
}

// The rows of all ranks in the order of tokens, in scratch memory.
AnyView Calibration::gather(Context& context, const Pass& pass, AnyView mine_TD) {
  if (world_.size() == 1) return mine_TD;
  const int64_t width = mine_TD.dim(1);
  const AnyView all = context.scratch().take(mine_TD.dtype, {pass.tokens, width});
  std::vector<int64_t> counts;
  for (int64_t tokens : pass.rank_tokens) counts.push_back(tokens * width);
  world_.all_gather(context, mine_TD, all, counts).wait();
  return all;
}

ExpertCoverage Calibration::measure(Context& context, BlockModel& block, BlockProblem& problem,
                                    const Progress& progress) {
  const std::vector<Site> sites = block_sites(shape_, problem.layer);
  for (const Site& site : sites) {
    const int64_t n = site.per_expert ? experts_.count : 1;
    const int64_t width = site_width(shape_, site.name);
    problem.statistics[site.name] = {
        .hessian_NDD = Tensor(DType::kF32, {n, width, width}),
        .rows = std::vector<int64_t>(static_cast<size_t>(n), site.per_expert ? 0 : tokens_),
        .usable = std::vector<char>(static_cast<size_t>(n), 1)};
  }
  for (const Pass& pass : passes_) {
    const int64_t tokens = pass.batch.tokens();
    block.forward(context, pass.batch, pass.x_TD.view().rows(0, tokens));
    const BlockActivations& a = block.activations();
    for (size_t s = 0; s < sites.size(); ++s) {
      const ScratchScope scope(context.scratch());
      SiteStatistics& statistics = problem.statistics.at(sites[s].name);
      const AnyView mine = site_input(a, sites[s].name, tokens);
      if (sites[s].per_expert) {
        const std::vector<int64_t>& offsets = a.moe.dispatch.only_chunk().expert_offsets;
        add_outer(context, mine, offsets, statistics.hessian_NDD);
        for (size_t n = 0; n + 1 < offsets.size(); ++n) {
          statistics.rows[n] += offsets[n + 1] - offsets[n];
        }
        continue;
      }
      // Sites are shared out; all ranks bring their rows.
      const AnyView all = gather(context, pass, mine);
      if (static_cast<int>(s) % world_.size() != world_.rank()) continue;
      add_outer(context, all, std::vector<int64_t>{0, pass.tokens}, statistics.hessian_NDD);
    }
    progress();
  }
  for (size_t s = 0; s < sites.size() && world_.size() > 1; ++s) {
    if (sites[s].per_expert) continue;
    world_
        .broadcast(context, problem.statistics.at(sites[s].name).hessian_NDD,
                   static_cast<int>(s) % world_.size())
        .wait();
  }
  ExpertCoverage coverage{.layer = problem.layer};
  if (!shape_.is_moe_layer(problem.layer)) return coverage;

  // Every rank learns what reached every expert.
  const int64_t experts = shape_.moe.experts;
  Tensor counts(DType::kI64, {experts});
  const std::vector<int64_t>& mine = problem.statistics.at("experts").rows;
  std::copy(mine.begin(), mine.end(), counts.as<int64_t>().data() + experts_.begin);
  world_.all_reduce(context, counts, Reduce::kSum).wait();
  coverage.minimum = options_.min_expert_tokens > 0
                         ? options_.min_expert_tokens
                         : std::max(shape_.width, shape_.moe.expert_width);
  std::vector<int64_t> weak;
  for (int64_t e = 0; e < experts; ++e) {
    coverage.tokens_E.push_back(counts.as<int64_t>()[e]);
    coverage.fell_back_E.push_back(coverage.tokens_E.back() < coverage.minimum ? 1 : 0);
    if (coverage.fell_back_E.back() != 0) weak.push_back(e);
  }
  if (weak.empty()) return coverage;
  if (options_.fallback_all_tokens) {
    measure_all_tokens(context, block, problem, weak);
  } else {
    for (int64_t e : weak) {
      if (e < experts_.begin || e >= experts_.begin + experts_.count) continue;
      for (const char* site : {"experts", "experts.act"}) {
        problem.statistics.at(site).usable[static_cast<size_t>(e - experts_.begin)] = 0;
      }
    }
  }
  return coverage;
}

// A second run in which the weak experts of this rank see every token.
void Calibration::measure_all_tokens(Context& context, BlockModel& block, BlockProblem& problem,
                                     const std::vector<int64_t>& weak) {
  const int64_t width = shape_.width;
  const int64_t inner = shape_.moe.expert_width;
  SiteStatistics& inputs = problem.statistics.at("experts");
  SiteStatistics& acts = problem.statistics.at("experts.act");
  std::vector<int64_t> here;
  for (int64_t e : weak) {
    if (e >= experts_.begin && e < experts_.begin + experts_.count)
      here.push_back(e - experts_.begin);
  }
  const auto matrix = [](const Tensor& all, int64_t n) { return all.view().rows(n, 1); };
  const Tensor input_DD(DType::kF32, {1, width, width});
  for (int64_t n : here) {
    const AnyView h = matrix(acts.hessian_NDD, n);
    std::fill_n(static_cast<float*>(h.data), h.elements(), 0.0f);
    inputs.rows[static_cast<size_t>(n)] = acts.rows[static_cast<size_t>(n)] = tokens_;
  }
  ParameterSet& parameters = block.parameters();
  const std::string name = block_prefix(0) + "moe.";
  for (const Pass& pass : passes_) {
    const ScratchScope scope(context.scratch());
    block.forward(context, pass.batch, pass.x_TD.view().rows(0, pass.batch.tokens()));
    const AnyView h = gather(context, pass, block.activations().h_TD.rows(0, pass.batch.tokens()));
    const std::vector<int64_t> all = {0, pass.tokens};
    if (!here.empty()) add_outer(context, h, all, input_DD);
    const AnyView gate = context.scratch().take(DType::kBF16, {pass.tokens, inner});
    const AnyView up = context.scratch().take(DType::kBF16, {pass.tokens, inner});
    const AnyView act = context.scratch().take(DType::kBF16, {pass.tokens, inner});
    for (int64_t n : here) {
      std::vector<int64_t> offsets(static_cast<size_t>(experts_.count) + 1, 0);
      std::fill(offsets.begin() + n + 1, offsets.end(), pass.tokens);
      expert_linear(context, h, parameters.get(name + "gate"), {offsets}, gate);
      expert_linear(context, h, parameters.get(name + "up"), {offsets}, up);
      swiglu(context, gate, up, act, pass.tokens);
      add_outer(context, act, all, matrix(acts.hessian_NDD, n));
    }
  }
  for (int64_t n : here) {
    const AnyView to = matrix(inputs.hessian_NDD, n);
    std::memcpy(to.data, input_DD.view().data, to.bytes());
  }
}

SiteStatistics Calibration::measure_head(Context& context, AnyView gain_D, double eps) {
  SiteStatistics statistics{.hessian_NDD = Tensor(DType::kF32, {1, shape_.width, shape_.width}),
                            .rows = {tokens_},
                            .usable = {1}};
  for (const Pass& pass : passes_) {
    const ScratchScope scope(context.scratch());
    const AnyView x = pass.x_TD.view().rows(0, pass.batch.tokens());
    const AnyView h = context.scratch().take(DType::kBF16, x.shape);
    rmsnorm(context, x, gain_D, eps, h, AnyView{});
    const AnyView all = gather(context, pass, h);
    if (world_.rank() == 0) {
      add_outer(context, all, std::vector<int64_t>{0, pass.tokens}, statistics.hessian_NDD);
    }
  }
  world_.broadcast(context, statistics.hessian_NDD, 0).wait();
  return statistics;
}

}  // namespace degu
