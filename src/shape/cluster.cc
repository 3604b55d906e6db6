#include "shape/cluster.h"

#include "config/yaml.h"

namespace degu {
namespace {

void check_link(const char* name, const LinkSpec& link) {
  if (!(link.bandwidth > 0) || !(link.latency >= 0)) {
    throw ConfigError(
        "{} has latency {} s and bandwidth {} B/s; give what `degu bench comm` measures", name,
        link.latency, link.bandwidth);
  }
}

}  // namespace

void ClusterSpec::check() const {
  if (nodes < 1) throw ConfigError("nodes is {}, must be 1 or more", nodes);
  if (ranks_per_node < 1) {
    throw ConfigError("ranks_per_node is {}, must be 1 or more", ranks_per_node);
  }
  if (!(device.memory >= 0)) throw ConfigError("device.memory is {} bytes", device.memory);
  if (!(device.fp32_flops > 0) || !(device.bf16_flops > 0) || !(device.memory_bandwidth > 0)) {
    throw ConfigError(
        "device: fp32_flops is {}, bf16_flops {} and memory_bandwidth {}; each must be above 0",
        device.fp32_flops, device.bf16_flops, device.memory_bandwidth);
  }
  if (ranks_per_node > 1) check_link("within_node", within_node);
  if (nodes > 1) check_link("between_nodes", between_nodes);
}

ClusterSpec load_cluster(const std::string& path) {
  return load_config<ClusterSpec>(path);
}

}  // namespace degu
