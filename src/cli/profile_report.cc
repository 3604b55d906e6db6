#include "cli/profile_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace degu {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const Percentiles& p) {
  return {{"p50", p.p50}, {"p95", p.p95}, {"p99", p.p99}};
}

Json json_of(const Estimate& e) {
  return {{"value", e.value}, {"interval", {e.low, e.high}}};
}

Json json_of(const ProfileQuality& q) {
  Json out = {{"tokens", q.tokens},
              {"documents", q.documents},
              {"loss", q.loss},
              {"perplexity", json_of(q.perplexity)},
              {"bits_per_byte", json_of(q.bits_per_byte)}};
  if (q.perplexity_change) {
    out["perplexity_change"] = json_of(*q.perplexity_change);
    out["perplexity_change"]["reference"] = q.reference;
  }
  return out;
}

Json json_of(const BatchProfile& b, const ProfileReport& report) {
  Json out = {
      {"batch", b.batch},
      {"ttft_seconds", json_of(b.ttft)},
      {"itl_seconds", json_of(b.itl)},
      {"prefill_tokens_per_second", b.prefill_tokens_per_second},
      {"decode_tokens_per_second", b.decode_tokens_per_second},
      {"decode_tokens_per_second_range", {b.decode_low, b.decode_high}},
      {"cost_per_million_input_tokens", report.cost_per_million_input(b)},
      {"cost_per_million_output_tokens", report.cost_per_million_output(b)},
      {"cost_per_request", report.request_cost(b)},
      {"bandwidth", {{"decode_bytes_per_second", b.decode_bytes}, {"share", b.bandwidth_share}}},
      {"compute",
       {{"prefill_flops_per_second", b.prefill_flops},
        {"prefill_share", b.prefill_compute_share},
        {"decode_flops_per_second", b.decode_flops},
        {"decode_share", b.decode_compute_share}}},
      {"distinct_experts", b.distinct_experts},
      {"tokens_per_pass", b.tokens_per_pass},
      {"acceptance", b.acceptance},
      {"repetitions", b.repetitions},
      {"repeated_for_noise", b.repeated},
      {"steady", b.steady()},
      {"probed_read_bandwidth", {b.probe_low, b.probe_high}}};
  if (report.hardware_source != "probed") {
    out["bandwidth"]["share_of_hardware"] = b.decode_bytes / report.hardware.read_bandwidth;
  }
  return out;
}

Json json_of(const LevelProfile& level, const ProfileReport& report) {
  const MemoryPlan& m = level.memory;
  Json out = {{"name", level.name},
              {"checkpoint", level.checkpoint},
              {"served", level.folder},
              {"level", level.level},
              {"scheme", level.scheme},
              {"method", level.method},
              {"speculation", level.speculation},
              {"parameters", {{"total", level.parameters}, {"active", level.active}}},
              {"memory_bytes",
               {{"weights", m.weights},
                {"cache", static_cast<size_t>(m.pages) * m.page},
                {"cache_per_token", static_cast<double>(m.page) / kKvPageKeys},
                {"workspace", m.workspace},
                {"scratch", m.scratch},
                {"draft", m.draft},
                {"scratch_peak", level.scratch_peak},
                {"predicted", m.total()},
                {"resident", level.resident}}},
              {"peak_flops_per_second", {level.peak_flops, level.peak_flops_after}}};
  if (level.quality) out["quality"] = json_of(*level.quality);
  if (!level.same_bits_as.empty()) out["same_bits_as"] = level.same_bits_as;
  out["batches"] = Json::array();
  for (const BatchProfile& b : level.batches) out["batches"].push_back(json_of(b, report));
  return out;
}

Json hardware_json(const ProfileReport& r) {
  return {{"source", r.hardware_source},
          {"cpu", r.hardware.cpu},
          {"isa", r.hardware.isa},
          {"threads", r.hardware.threads},
          {"date", r.hardware.date},
          {"read_bandwidth", r.hardware.read_bandwidth},
          {"fp32_flops", r.hardware.fp32_flops},
          {"bf16_flops", r.hardware.bf16_flops},
          {"int8_ops", r.hardware.int8_ops}};
}

std::vector<ServingPoint> only_points(const std::vector<ProfilePoint>& points) {
  std::vector<ServingPoint> out;
  out.reserve(points.size());
  for (const ProfilePoint& p : points) out.push_back(p.point);
  return out;
}

double mib(size_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

// A price with three digits, whatever its size.
std::string price(double value) {
  return fmt::format("{:.3g}", value);
}

void print_levels(const ProfileReport& report) {
  fmt::print("{:<34} {:>7} {:>9} {:>9} {:>9} {:>9} {:>10} {:>22} {:>9}\n", "model and level",
             "scheme", "weights", "cache", "resident", "B/token", "bits/byte", "95 % interval",
             "ppl");
  for (const LevelProfile& level : report.levels) {
    std::string quality = fmt::format("{:>10} {:>22} {:>9}", "-", "-", "-");
    if (level.quality) {
      const ProfileQuality& q = *level.quality;
      quality =
          fmt::format("{:>10.4f} {:>22} {:>9.3f}", q.bits_per_byte.value,
                      fmt::format("[{:.4f}, {:.4f}]", q.bits_per_byte.low, q.bits_per_byte.high),
                      q.perplexity.value);
    }
    fmt::print("{:<34} {:>7} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.0f} {}\n", level.name, level.scheme,
               mib(level.memory.weights),
               mib(static_cast<size_t>(level.memory.pages) * level.memory.page),
               mib(level.resident), static_cast<double>(level.memory.page) / kKvPageKeys, quality);
  }
  fmt::print("weights, cache, resident in MiB; B/token: bytes of cache per token");
  if (!report.data.empty() && !report.levels.empty() && report.levels.front().quality) {
    fmt::print("; quality on the same {} tokens", report.levels.front().quality->tokens);
  }
  fmt::print("\n");
  for (const LevelProfile& level : report.levels) {
    if (!level.same_bits_as.empty()) {
      fmt::print("  {}: the same bits as {}\n", level.name, level.same_bits_as);
      continue;
    }
    if (!level.same_bits_as.empty()) {
      fmt::print("  {}: the same bits as {}\n", level.name, level.same_bits_as);
      continue;
    }
    if (!level.quality || !level.quality->perplexity_change) continue;
    const Estimate& e = *level.quality->perplexity_change;
    fmt::print("  {}: perplexity {:+.3f} % [{:+.3f}, {:+.3f}] against {}\n", level.name,
               100 * e.value, 100 * e.low, 100 * e.high, level.quality->reference);
  }
}

void print_batches(const ProfileReport& report) {
  fmt::print("\n{:<34} {:>5} {:>17} {:>23} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6}\n",
             "model and level", "batch", "TTFT ms p50/p95", "ITL ms p50/p95/p99", "prefill",
             "decode", "in/M", "out/M", "mem", "comp");
  const double ms = 1e3;
  for (const LevelProfile& level : report.levels) {
    for (const BatchProfile& b : level.batches) {
      fmt::print(
          "{:<34} {:>5} {:>17} {:>23} {:>9.0f} {:>9.0f} {:>9} {:>9} {:>6.2f} {:>6.2f}{}\n",
          level.name, b.batch, fmt::format("{:.2f}/{:.2f}", ms * b.ttft.p50, ms * b.ttft.p95),
          fmt::format("{:.2f}/{:.2f}/{:.2f}", ms * b.itl.p50, ms * b.itl.p95, ms * b.itl.p99),
          b.prefill_tokens_per_second, b.decode_tokens_per_second,
          price(report.cost_per_million_input(b)), price(report.cost_per_million_output(b)),
          b.bandwidth_share, b.prefill_compute_share, b.steady() ? "" : "  noisy");
    }
  }
  fmt::print(
      "prompts of {} tokens, answers of {}; prefill and decode in tokens/s; in/M, out/M: price per "
      "million tokens at {:g} an hour;\nmem: share of the probed read bandwidth in decode; comp: "
      "share of the peak arithmetic in prefill\n",
      report.prompt_tokens, report.max_tokens, report.price_per_hour);
  int64_t repeated = 0;
  bool noisy = false;
  for (const LevelProfile& level : report.levels) {
    for (const BatchProfile& b : level.batches) {
      repeated += b.repeated;
      noisy = noisy || !b.steady();
    }
  }
  if (noisy) {
    fmt::print(
        "noisy: repetitions' decode rates differ by more than {:.0f} %, or read bandwidth "
        "did not calm down\n",
        100 * (kSteadyDecode - 1));
  }
  if (repeated > 0) {
    fmt::print(
        "{} repetitions were measured again: read bandwidth changed by more than {:.0f} % "
        "around them\n",
        repeated, 100 * (kSteadyProbes - 1));
  }
}

}  // namespace

double ProfileReport::request_cost(const BatchProfile& b) const {
  return (static_cast<double>(prompt_tokens) * cost_per_million_input(b) +
          static_cast<double>(max_tokens) * cost_per_million_output(b)) *
         1e-6;
}

std::vector<ProfilePoint> profile_points(const ProfileReport& report) {
  std::vector<ProfilePoint> points;
  for (const LevelProfile& level : report.levels) {
    if (!level.quality) return {};
    for (const BatchProfile& b : level.batches) {
      points.push_back({&level,
                        &b,
                        {.bits_per_byte = level.quality->bits_per_byte.value,
                         .latency = b.itl.p95,
                         .cost = report.request_cost(b)}});
    }
  }
  return points;
}

Json to_json(const ProfileReport& report) {
  Json out = {
      {"format", "degu profile 1"},
      {"hardware", hardware_json(report)},
      {"price_per_hour", report.price_per_hour},
      {"workload",
       {{"prompt_tokens", report.prompt_tokens},
        {"max_tokens", report.max_tokens},
        {"temperature", report.temperature},
        {"prompts", report.prompts},
        {"kv", report.kv}}},
      {"quality_data", {{"paths", report.data}, {"sequence_length", report.sequence_length}}},
      {"levels", Json::array()},
      {"seconds", report.seconds}};
  for (const LevelProfile& level : report.levels) out["levels"].push_back(json_of(level, report));
  const std::vector<ProfilePoint> points = profile_points(report);
  if (points.empty()) return out;
  const std::vector<ServingPoint> plain = only_points(points);
  const std::vector<bool> worse = dominated(plain);
  out["frontier"] = Json::array();
  for (size_t i = 0; i < points.size(); ++i) {
    out["frontier"].push_back({{"name", points[i].level->name},
                               {"batch", points[i].batch->batch},
                               {"bits_per_byte", plain[i].bits_per_byte},
                               {"itl_p95_seconds", plain[i].latency},
                               {"cost_per_request", plain[i].cost},
                               {"dominated", static_cast<bool>(worse[i])}});
  }
  out["priority"] = enum_names(Priority{})[static_cast<size_t>(report.priority)];
  out["quality_slack"] = report.slack;
  for (const Priority priority : {Priority::kQuality, Priority::kLatency, Priority::kCost}) {
    const ProfilePoint& best = points[recommend(plain, priority, report.slack)];
    out["recommended"][std::string(enum_names(priority)[static_cast<size_t>(priority)])] = {
        {"name", best.level->name},
        {"batch", best.batch->batch},
        {"rule", recommendation_rule(priority, report.slack)}};
  }
  return out;
}

void print_report(const ProfileReport& report) {
  print_levels(report);
  print_batches(report);
  const std::vector<ProfilePoint> points = profile_points(report);
  if (points.empty()) {
    fmt::print("\nno recommendation: quality was not measured\n");
    return;
  }
  const ProfilePoint& best = points[recommend(only_points(points), report.priority, report.slack)];
  fmt::print(
      "\nfor {}: {} in batches of {} ({}; bits per byte {:.4f}, p95 between tokens {:.2f} "
      "ms, {} per million answer tokens)\n",
      enum_names(Priority{})[static_cast<size_t>(report.priority)], best.level->name,
      best.batch->batch, recommendation_rule(report.priority, report.slack),
      best.point.bits_per_byte, 1e3 * best.point.latency,
      price(report.cost_per_million_output(*best.batch)));
}

}  // namespace degu
