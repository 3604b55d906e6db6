// `degu bench comm`, on several ranks: what the links between the ranks of a job carry.
#include <sys/sysinfo.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/timer.h"
#include "cli/bench_model.h"
#include "cli/job.h"
#include "cli/kernel_bench.h"
#include "comm/nodes.h"
#include "comm/two_stage_comm.h"
#include "config/yaml.h"
#include "io/atomic_file.h"
#include "shape/cluster.h"
#include "tensor/tensor.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kNoLink =
    "the all-to-all's largest size took no longer than its smallest, so the link's numbers are not "
    "known; raise --most or --repetitions";

struct Options {
  std::string out;
  int64_t least = 1024;
  int64_t most = int64_t{32} << 20;
  int repetitions = 7;
  int nodes = 1;
  int threads = 0;
  bool json = false;
};

// One collective on `floats` values of each rank. `sent`: bytes that a rank has to send for each
// byte of its values, at least; so rate x sent is what its link carries (the "bus bandwidth" of
// NCCL's tests).
struct Collective {
  const char* name;
  double (*sent)(int ranks);
  void (*run)(Communicator&, Context&, AnyView values, AnyView other);
};

double rest_of(int ranks) {
  return static_cast<double>(ranks - 1) / ranks;
}

std::vector<int64_t> even_counts(int ranks, int64_t rows) {
  return std::vector<int64_t>(static_cast<size_t>(ranks), rows / ranks);
}

void all_to_all(Communicator& c, Context& x, AnyView v, AnyView other) {
  const std::vector<int64_t> counts = even_counts(c.size(), v.dim(0));
  c.all_to_all_rows(x, v, counts, other, counts).wait();
}

const Collective kCollectives[] = {
    {"all_reduce, tree", [](int n) { return 2 * rest_of(n); },
     [](Communicator& c, Context& x, AnyView v, AnyView) {
       c.all_reduce(x, v, Reduce::kSum, Order::kTree).wait();
     }},
    {"all_reduce, any order", [](int n) { return 2 * rest_of(n); },
     [](Communicator& c, Context& x, AnyView v, AnyView) {
       c.all_reduce(x, v, Reduce::kSum, Order::kAny).wait();
     }},
    {"reduce_scatter, tree", rest_of,
     [](Communicator& c, Context& x, AnyView v, AnyView other) {
       c.reduce_scatter(x, v, other.rows(0, v.dim(0) / c.size()), Reduce::kSum, Order::kTree)
           .wait();
     }},
    {"all_gather", rest_of,
     [](Communicator& c, Context& x, AnyView v, AnyView other) {
       c.all_gather(x, other.rows(0, v.dim(0) / c.size()), v).wait();
     }},
    {"all_to_all", rest_of, all_to_all},
    {"broadcast", [](int) { return 1.0; },
     [](Communicator& c, Context& x, AnyView v, AnyView) { c.broadcast(x, v, 0).wait(); }},
};
// The same rows by way of comm/two_stage_comm.h, where that applies.
const Collective kTwoStages = {"all_to_all, two stages", rest_of, all_to_all};

struct Point {
  double bytes = 0;    // of each rank's values
  double seconds = 0;  // of the slowest rank, median over repetitions
  double least = 0;    // the same, the quickest repetition
};

// So many floats that `bytes` hold them and each rank has equally many, at least one.
int64_t whole_floats(int64_t bytes, int ranks) {
  return std::max<int64_t>(1, bytes / 4 / ranks) * ranks;
}

double slowest(Communicator& world, Context& context, double seconds) {
  world.all_reduce(context, View<double>(&seconds, {1}), Reduce::kMax).wait();
  return seconds;
}

Point measure_size(Communicator& world, Context& context, const Collective& collective,
                   int64_t floats, int repetitions, AnyView values, AnyView other) {
  const AnyView v = values.rows(0, floats);
  const AnyView o = other.rows(0, floats);
  // So many calls that a short one is not the clock's noise; as many on every rank.
  const auto timed = [&](int calls) {
    world.barrier();
    const Timer timer;
    for (int i = 0; i < calls; ++i) collective.run(world, context, v, o);
    return slowest(world, context, timer.seconds()) / calls;
  };
  const double once = timed(1);
  const int calls = std::clamp(static_cast<int>(2e-3 / std::max(once, 1e-7)), 1, 1000);
  std::vector<double> seconds(static_cast<size_t>(repetitions));
  for (double& each : seconds) each = timed(calls);
  std::sort(seconds.begin(), seconds.end());
  return {4.0 * static_cast<double>(floats), seconds[seconds.size() / 2], seconds.front()};
}

// latency + bytes / bandwidth through an exchange's points: latency from the smallest message,
// bandwidth from the largest beyond it; each at its quickest, for other work on the machine only
// slows it. Nothing where the largest took no longer than the smallest.
std::optional<LinkSpec> link_of(const std::vector<Point>& points, int ranks) {
  const Point& small = points.front();
  const Point& large = points.back();
  const double body = large.least - small.least;
  if (!(body > 0)) return std::nullopt;
  return LinkSpec{.latency = small.least / (ranks - 1),
                  .bandwidth = (large.bytes - small.bytes) * rest_of(ranks) / body};
}

// What is said of the link; to a file goes nothing less than its numbers.
void report_link(const std::optional<LinkSpec>& link, const Options& options, Json rows,
                 int ranks) {
  if (options.json) {
    const Json out = {{"ranks", ranks},
                      {"collectives", std::move(rows)},
                      {"latency", link ? Json(link->latency) : Json()},
                      {"bandwidth", link ? Json(link->bandwidth) : Json()}};
    fmt::print("{}\n", out.dump(2));
  } else if (link) {
    fmt::print("\na rank sends {:.3f} GB/s in an all-to-all, {:.1f} microseconds per message{}\n",
               link->bandwidth / 1e9, 1e6 * link->latency,
               options.out.empty() ? "" : "; written to " + options.out);
  }
  if (!link) log_warn("{}", kNoLink);
}

ClusterSpec describe(Communicator& world, Context& context, const LinkSpec& link,
                     const Options& options) {
  world.barrier();  // all ranks probe at once, as they will compute at once
  const HardwareProfile profile = measure_hardware(context);
  ClusterSpec cluster;
  cluster.source =
      fmt::format("measured {} by degu bench comm on {} ranks", profile.date, world.size());
  cluster.nodes = options.nodes;
  cluster.ranks_per_node = world.size() / options.nodes;
  cluster.device = {.name = fmt::format("{}, {} threads", profile.cpu, profile.threads),
                    .memory = 0,
                    .fp32_flops = profile.fp32_flops,
                    .bf16_flops = profile.bf16_flops,
                    .memory_bandwidth = profile.read_bandwidth};
  struct sysinfo memory = {};
  if (sysinfo(&memory) == 0) {
    cluster.device.memory = static_cast<double>(memory.totalram) *
                            static_cast<double>(memory.mem_unit) / cluster.ranks_per_node;
  }
  cluster.within_node = link;
  cluster.between_nodes = link;
  return cluster;
}

// Every size of one collective on one communicator, as rows of the table and of `out`.
std::vector<Point> measure_sizes(Communicator& world, Context& context,
                                 const Collective& collective, const Options& options,
                                 AnyView values, AnyView other, Json& out) {
  const int ranks = world.size();
  std::vector<Point> points;
  for (int64_t bytes = options.least;; bytes *= 8) {
    const int64_t size = std::min(bytes, options.most);
    const Point point = measure_size(world, context, collective, whole_floats(size, ranks),
                                     options.repetitions, values, other);
    points.push_back(point);
    const double sent = collective.sent(ranks) * point.bytes / point.seconds;
    if (world.rank() == 0 && !options.json) {
      fmt::print("{:<24} {:>12.0f} {:>12.1f} {:>12.3f}\n", collective.name, point.bytes,
                 1e6 * point.seconds, sent / 1e9);
      std::fflush(stdout);
    }
    out.push_back({{"collective", collective.name},
                   {"bytes", point.bytes},
                   {"seconds", point.seconds},
                   {"bytes_sent_per_second", sent}});
    if (size == options.most) return points;
  }
}

ExitCode bench_comm(const Options& options) {
  Job job(options.threads);
  Communicator& world = job.world();
  Context& context = job.context();
  const int ranks = world.size();
  if (ranks < 2) {
    throw ConfigError(
        "bench comm measures what ranks exchange; start it with mpirun -n 2 or more, or as "
        "docs/cluster.md says without MPI");
  }
  if (ranks % options.nodes != 0) {
    throw ConfigError("--nodes {} does not divide the job's {} ranks", options.nodes, ranks);
  }
  const bool first = world.rank() == 0;
  const std::vector<int> nodes = exchange_nodes(world);
  const std::string obstacle = two_stage_obstacle(nodes);
  const Shape shape{whole_floats(options.most, ranks)};
  const Tensor values(DType::kF32, shape), other(DType::kF32, shape);
  fill_random(context, values, 1);
  fill_random(context, other, 2);
  Json rows = Json::array();
  std::optional<LinkSpec> link;
  if (first && !options.json) {
    fmt::print("{} ranks, {} threads each\n{:<24} {:>12} {:>12} {:>12}\n", ranks, context.threads(),
               "", "bytes", "microseconds", "GB/s sent");
  }
  for (const Collective& collective : kCollectives) {
    const auto points = measure_sizes(world, context, collective, options, values, other, rows);
    if (collective.run == all_to_all) link = link_of(points, ranks);
  }
  if (obstacle.empty()) {
    const auto two_stages = make_two_stage_communicator(world, nodes);
    measure_sizes(*two_stages, context, kTwoStages, options, values, other, rows);
  } else if (count_nodes(nodes) > 1) {
    log_info("all_to_all in two stages is not measured; the ranks: {}", obstacle);
  }
  if (!options.out.empty()) {
    if (!link) throw NumericError("{}: {}", options.out, kNoLink);
    const ClusterSpec cluster = describe(world, context, *link, options);
    if (first) write_file_atomic(options.out, to_yaml(cluster));
  }
  if (first) report_link(link, options, std::move(rows), ranks);
  return ExitCode::kDone;
}

}  // namespace

Action attach_bench_comm(CommandLine& line) {
  auto options = std::make_shared<Options>();
  line.option("--out", options->out, "write the cluster's YAML, for `degu plan --train`");
  line.option("--least", options->least, "bytes of the smallest values").within(4, 1 << 30);
  line.option("--most", options->most, "bytes of the largest values")
      .within(int64_t{4}, int64_t{1} << 34);
  line.option("--repetitions", options->repetitions, "of each; the median is told").within(1, 1000);
  line.option("--nodes", options->nodes, "nodes that the ranks are spread over").positive();
  line.option("--threads", options->threads, "per rank; 0: the node's cores over its ranks")
      .non_negative();
  line.flag("--json", options->json, "one JSON object on standard output");
  return [options] { return bench_comm(*options); };
}

}  // namespace degu
