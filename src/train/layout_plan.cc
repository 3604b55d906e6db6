#include "train/layout_plan.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "comm/mesh.h"
#include "comm/nccl_comm.h"
#include "shape/accounting.h"
#include "train/rank_objects.h"

namespace degu {
namespace {

// What a GPU's kernels take beside the rows that layers take: above all subtrees of weight
// gradients, 64 KiB for each running block and level of the tree.
constexpr double kKernelScratch = size_t{512} << 20;

double value_bytes(const RunConfig& config) {
  return static_cast<double>(size_of(activation_type(config.train.precision)));
}

// One message to each of `peers` other ranks, `bytes` in all, of which a share leaves the node.
double exchange_seconds(const ClusterSpec& cluster, int group, int group_nodes, double bytes) {
  if (group < 2) return 0;
  const double inside = static_cast<double>(group) / group_nodes;  // ranks of the group in my node
  const double within = bytes * (inside - 1) / (group - 1);
  const double between = bytes - within;
  double seconds = 0;
  if (inside > 1) {
    seconds += cluster.within_node.latency * (inside - 1) + within / cluster.within_node.bandwidth;
  }
  if (between > 0) {
    seconds += cluster.between_nodes.latency * (group - inside) +
               between / cluster.between_nodes.bandwidth;
  }
  return seconds;
}

// Nodes that a group of `size` ranks touches whose members are `stride` apart.
int nodes_of(const ClusterSpec& cluster, int size, int stride) {
  const int reach = (size - 1) * stride + 1;
  return std::min(size, (reach + cluster.ranks_per_node - 1) / cluster.ranks_per_node);
}

struct ComputeSeconds {
  double experts = 0;  // the routed experts' products
  double rest = 0;
};

ComputeSeconds compute_seconds(const RunConfig& config, const ClusterSpec& cluster,
                               const LayoutAssumptions& a, double tokens) {
  const Flops flops = count_flops(config.model, config.data.sequence_length);
  const double experts = static_cast<double>(flops.experts);
  const double rest = static_cast<double>(flops.forward()) - experts;
  const double busiest = config.cluster.expert_parallel > 1 ? a.imbalance : 1.0;
  const double peak = config.train.precision == Precision::kBf16 ? cluster.device.bf16_flops
                                                                 : cluster.device.fp32_flops;
  // The backward pass is two forward passes' work, and makes again what was not kept.
  const Recompute again = config.train.recompute;
  const double rest_passes = again == Recompute::kBlock ? 4 : 3;
  const double expert_passes = again == Recompute::kNone ? 3 : 4;
  const double rate = peak * a.utilisation;
  return {.experts = tokens * expert_passes * busiest * experts / rate,
          .rest = tokens * rest_passes * rest / rate};
}

// Rows to experts and back. Between GPUs the exchange of all chunks but the first is hidden, as far
// as the experts' products last.
double rows_seconds(const RunConfig& config, const ClusterSpec& cluster, const LayoutAssumptions& a,
                    const StepPlan& plan, int moe_layers, double products) {
  const int ep = config.cluster.expert_parallel;
  if (ep < 2) return 0;
  const ModelShape& shape = config.model;
  const double rows = static_cast<double>(plan.micro_tokens()) * shape.moe.top_k * (ep - 1) / ep;
  const double bytes = rows * shape.width * value_bytes(config) * a.imbalance;
  const double exchanges = config.train.recompute == Recompute::kNone ? 4 : 6;
  const bool beside = config.cluster.device == DeviceType::kCuda;
  double quickest = std::numeric_limits<double>::infinity();
  for (const int64_t n : exchange_chunks(config)) {
    const auto chunks = static_cast<double>(n);
    const double first = exchanges * static_cast<double>(plan.micro_batches) * moe_layers *
                         exchange_seconds(cluster, ep, nodes_of(cluster, ep, 1), bytes / chunks);
    quickest =
        std::min(quickest, first + std::max(0.0, (chunks - 1) * first - (beside ? products : 0)));
  }
  return quickest;
}

// Gradients travel to their shards and values come back, in fp32. With train.shard_gradients each
// pass reduces, block by block.
double reduction_seconds(const RunConfig& config, const ClusterSpec& cluster, const Layout& layout,
                         const StepPlan& plan, const Parameters& p, int moe_layers) {
  const ModelShape& shape = config.model;
  const bool by_block = config.train.shard_gradients;
  const auto one_way = [&](int group, int stride, double elements, double messages) {
    if (group < 2 || elements == 0) return 0.0;
    return messages * exchange_seconds(cluster, group, nodes_of(cluster, group, stride),
                                       4 * elements / messages * (group - 1) / group);
  };
  const double passes = by_block ? static_cast<double>(plan.micro_batches) : 1;
  const double dense = static_cast<double>(p.total() - p.experts);
  // The look-up's gradient of a tied embedding and the head's are reduced apart.
  const double twice = shape.tied_head ? static_cast<double>(shape.vocab) * shape.width : 0;
  const double dense_messages = by_block ? shape.layers + 2 : 1;  // and the embedding and the head
  const int ranks = layout.ranks();
  const double of_dense = passes * one_way(ranks, 1, dense + twice, dense_messages) +
                          one_way(ranks, 1, dense, dense_messages);
  const int ep = layout.expert_parallel();
  const double experts = static_cast<double>(p.experts) / ep;
  const double of_experts =
      (passes + 1) * one_way(layout.edp_size(), ep, experts, by_block ? moe_layers : 1);
  return of_dense + of_experts;
}

}  // namespace

TrainingMemory training_memory(const RunConfig& config, const Layout& layout) {
  RankObjects planned(config, layout, DeviceType::kPlan);
  std::optional<RankObjects> on_host;
  if (config.cluster.device == DeviceType::kCpu) on_host.emplace(config, layout, DeviceType::kCpu);
  const RankObjects& objects = on_host ? *on_host : planned;
  TrainingMemory m;
  m.parameters = static_cast<double>(objects.parameters().bytes());
  m.activations = static_cast<double>(objects.training().reserved_bytes());
  m.evaluation = static_cast<double>(objects.evaluation().reserved_bytes());
  m.gradients = static_cast<double>(objects.regions().gradient_bytes() + objects.norm().bytes());
  m.moments = static_cast<double>(objects.regions().moment_bytes());
  m.scratch = static_cast<double>(planned.rehearse());
  if (on_host) return m;
  m.scratch += kKernelScratch;
  if (layout.ranks() > 1) m.scratch += static_cast<double>(kNcclSumBytes);
  return m;
}

StepSeconds step_seconds(const RunConfig& config, const ClusterSpec& cluster,
                         const LayoutAssumptions& a) {
  const int ranks = cluster.ranks();
  const Layout layout(0, ranks, config.cluster.expert_parallel);
  const StepPlan plan = plan_steps(config, layout);
  const double tokens = static_cast<double>(plan.tokens_per_step()) / ranks;
  const int ep = layout.expert_parallel();
  StepSeconds s;
  const ComputeSeconds compute = compute_seconds(config, cluster, a, tokens);
  s.compute = compute.experts + compute.rest;

  const ModelShape& shape = config.model;
  int moe_layers = 0;
  for (int layer = 0; layer < shape.layers; ++layer) moe_layers += shape.is_moe_layer(layer);
  s.exchange = rows_seconds(config, cluster, a, plan, moe_layers, compute.experts);
  const Parameters p = count_parameters(shape);
  const double experts = static_cast<double>(p.experts) / ep;
  const double dense = static_cast<double>(p.total() - p.experts);
  s.reduction = reduction_seconds(config, cluster, layout, plan, p, moe_layers);
  // AdamW reads the gradient and reads and writes both moments and the value; packing reads every
  // value and writes it twice.
  const auto moment = static_cast<double>(size_of(moment_type(config.train.optimizer.moments)));
  const double owned = dense / ranks + experts / layout.edp_size();
  s.update = ((12 + 4 * moment) * owned + (4 + 2 * value_bytes(config)) * (dense + experts)) /
             cluster.device.memory_bandwidth;
  return s;
}

LayoutPlan plan_layouts(const RunConfig& config, const ClusterSpec& cluster,
                        const LayoutAssumptions& assumptions) {
  LayoutPlan result;
  const int ranks = cluster.ranks();
  const int64_t experts = config.model.moe.experts;
  for (int ep = 1; ep <= ranks; ++ep) {
    if (ranks % ep != 0 || (ep > 1 && (experts == 0 || experts % ep != 0))) continue;
    RunConfig c = config;
    c.cluster.expert_parallel = ep;
    c.train.micro_batch_sequences = 0;
    const Layout layout(0, ranks, ep);
    StepPlan plan;
    try {
      plan = plan_steps(c, layout);
    } catch (const ConfigError& error) {
      result.refused.push_back(fmt::format("expert_parallel {}: {}", ep, error.what()));
      continue;
    }
    result.tokens_per_step = plan.tokens_per_step();
    result.steps = plan.steps;
    result.flops_per_step =
        training_flops(c.model, plan.sequence_length, static_cast<double>(plan.tokens_per_step()));
    for (int64_t micro = plan.micro_sequences;
         micro >= plan.unit_sequences && micro % plan.unit_sequences == 0; micro /= 2) {
      c.train.micro_batch_sequences = micro;
      PlannedLayout planned{.expert_parallel = ep, .micro_batch_sequences = micro};
      planned.memory = training_memory(c, layout);
      planned.seconds = step_seconds(c, cluster, assumptions);
      planned.fits = cluster.device.memory == 0 || planned.memory.total() <= cluster.device.memory;
      result.layouts.push_back(planned);
      if (micro % 2 != 0) break;
    }
  }
  std::stable_sort(result.layouts.begin(), result.layouts.end(),
                   [](const PlannedLayout& x, const PlannedLayout& y) {
                     if (x.fits != y.fits) return x.fits;
                     return x.fits ? x.seconds.total() < y.seconds.total()
                                   : x.memory.total() < y.memory.total();
                   });
  return result;
}

}  // namespace degu
