#include "server/metrics.h"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <sstream>

namespace degu {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<std::pair<std::string, std::string>>;

// Bounds in seconds, from a small model on a processor to a large one in a queue.
const prometheus::Histogram::BucketBoundaries kTokenSeconds = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10};
const prometheus::Histogram::BucketBoundaries kFirstTokenSeconds = {
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 120};
const prometheus::Histogram::BucketBoundaries kRequestSeconds = {
    0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600};
const prometheus::Histogram::BucketBoundaries kTokenCounts = {1,   2,   5,    10,   20,   50,   100,
                                                              200, 500, 1000, 2000, 5000, 10000};

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Families made from the engine's own statistics at the moment of asking.
class Snapshot {
 public:
  explicit Snapshot(const std::string& model) : model_(model) {}

  void gauge(const char* name, const char* help, double value, const Labels& labels = {}) {
    add(name, help, MetricType::Gauge, labels).gauge.value = value;
  }
  void counter(const char* name, const char* help, double value, const Labels& labels = {}) {
    add(name, help, MetricType::Counter, labels).counter.value = value;
  }
  std::vector<MetricFamily> take() { return std::move(families_); }

 private:
  // Metrics of one name come one after the other.
  ClientMetric& add(const char* name, const char* help, MetricType type, const Labels& labels) {
    if (families_.empty() || families_.back().name != name) {
      MetricFamily& family = families_.emplace_back();
      family.name = name;
      family.help = help;
      family.type = type;
    }
    ClientMetric& metric = families_.back().metric.emplace_back();
    metric.label.push_back({"model_name", model_});
    for (const auto& [key, value] : labels) metric.label.push_back({key, value});
    return metric;
  }
  std::string model_;
  std::vector<MetricFamily> families_;
};

double count(int64_t value) {
  return static_cast<double>(value);
}

void add_requests(Snapshot& out, const EngineStats& s) {
  out.gauge("degu:num_requests_running", "Requests in the batch.", count(s.running));
  out.gauge("degu:num_requests_waiting", "Requests in the engine's queue.", count(s.waiting));
  out.gauge("degu:kv_cache_usage_perc",
            "Share of the cache's pages that running requests hold (1 is all).",
            s.pages > 0 ? count(s.pages_in_use) / count(s.pages) : 0);
  out.gauge("degu:kv_cache_pages", "Pages of the cache, by what holds them.", count(s.pages_in_use),
            {{"state", "in_use"}});
  out.gauge("degu:kv_cache_pages", "", count(s.pages_cached), {{"state", "cached"}});
  out.gauge("degu:kv_cache_pages", "", count(s.pages - s.pages_in_use - s.pages_cached),
            {{"state", "free"}});
  out.counter("degu:num_preemptions_total", "Requests that gave their pages back.",
              count(s.preemptions));
  for (size_t i = 0; i < s.finished.size(); ++i) {
    out.counter("degu:request_success_total", "Requests that ended, by reason.",
                count(s.finished[i]),
                {{"finished_reason", std::string(enum_names(FinishReason{})[i])}});
  }
}

void add_passes(Snapshot& out, const EngineStats& s) {
  out.counter("degu:engine_steps_total", "Passes of the model.", count(s.passes));
  out.counter("degu:engine_step_seconds_total", "Seconds in passes.", s.pass_seconds);
  int64_t proposed = 0;
  int64_t accepted = 0;
  for (size_t d = 0; d < s.drafts_proposed.size(); ++d) {
    proposed += s.drafts_proposed[d];
    accepted += s.drafts_accepted[d];
  }
  out.counter("degu:spec_decode_num_drafts_total", "Sequences times passes that had drafts.",
              count(s.drafts_proposed[0]));
  out.counter("degu:spec_decode_num_draft_tokens_total", "Tokens drafted.", count(proposed));
  out.counter("degu:spec_decode_num_accepted_tokens_total", "Drafts that stood.", count(accepted));
  for (size_t d = 0; d < s.drafts_proposed.size() && s.drafts_proposed[d] > 0; ++d) {
    out.counter("degu:spec_decode_num_accepted_tokens_per_pos_total",
                "Drafts that stood, by position after the last known token.",
                count(s.drafts_accepted[d]), {{"position", std::to_string(d)}});
  }
}

void add_experts(Snapshot& out, const EngineStats& s) {
  if (s.load_LE.empty()) return;
  out.gauge(
      "degu:distinct_experts_per_step",
      "Experts that a pass touches in a Mixture-of-Experts layer, mean over layers and passes.",
      s.distinct_experts);
  out.counter("degu:exchange_seconds_total",
              "Seconds in which this rank exchanged tokens with the other ranks' experts.",
              s.exchange_seconds);
  for (size_t l = 0; l < s.load_LE.size(); ++l) {
    for (size_t e = 0; e < s.load_LE[l].size(); ++e) {
      out.counter("degu:expert_rows_total",
                  "Tokens that an expert read, by Mixture-of-Experts layer and expert.",
                  count(s.load_LE[l][e]),
                  {{"layer", std::to_string(l)}, {"expert", std::to_string(e)}});
    }
  }
}

}  // namespace

struct ServerMetrics::Families {
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& http;
  prometheus::Counter& vanished;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Counter& prefix_queries;
  prometheus::Counter& prefix_hits;
  prometheus::Histogram& first_token;
  prometheus::Histogram& inter_token;
  prometheus::Histogram& queue;
  prometheus::Histogram& whole;
  prometheus::Histogram& prompt_lengths;
  prometheus::Histogram& answer_lengths;

  explicit Families(const std::string& model)
      : http(prometheus::BuildCounter()
                 .Name("degu:http_requests_total")
                 .Help("HTTP requests answered, by endpoint and status.")
                 .Labels({{"model_name", model}})
                 .Register(registry)),
        vanished(counter(model, "degu:clients_vanished_total",
                         "Clients that left before their answer was complete.")),
        prompt_tokens(counter(model, "degu:prompt_tokens_total", "Prompt tokens read.")),
        generation_tokens(counter(model, "degu:generation_tokens_total", "Tokens drawn.")),
        prefix_queries(counter(model, "degu:prefix_cache_queries_total",
                               "Prompt tokens that were looked up in the prefix cache.")),
        prefix_hits(counter(model, "degu:prefix_cache_hits_total",
                            "Prompt tokens that the prefix cache had.")),
        first_token(histogram(model, "degu:time_to_first_token_seconds",
                              "From arrival to the first token.", kFirstTokenSeconds)),
        inter_token(histogram(model, "degu:inter_token_latency_seconds",
                              "Between two tokens of an answer; tokens that come together share "
                              "their wait.",
                              kTokenSeconds)),
        queue(histogram(model, "degu:request_queue_time_seconds", "From arrival to the first pass.",
                        kRequestSeconds)),
        whole(histogram(model, "degu:e2e_request_latency_seconds",
                        "From arrival to the last token.", kRequestSeconds)),
        prompt_lengths(histogram(model, "degu:request_prompt_tokens",
                                 "Prompt tokens of ended requests.", kTokenCounts)),
        answer_lengths(histogram(model, "degu:request_generation_tokens",
                                 "Drawn tokens of ended requests.", kTokenCounts)) {}

 private:
  prometheus::Counter& counter(const std::string& model, const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(
        {{"model_name", model}});
  }
  prometheus::Histogram& histogram(const std::string& model, const char* name, const char* help,
                                   const prometheus::Histogram::BucketBoundaries& bounds) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(
        {{"model_name", model}}, bounds);
  }
};

ServerMetrics::ServerMetrics(const Options& options)
    : options_(options), families_(std::make_unique<Families>(options.model)) {}

ServerMetrics::~ServerMetrics() = default;

void ServerMetrics::saw_event(Seen& seen, const Event& event) {
  Families& f = *families_;
  const Clock::time_point now = Clock::now();
  const Usage& usage = event.usage;
  if (!seen.started && (usage.completion_tokens > 0 || event.finish)) {
    seen.started = true;
    f.queue.Observe(usage.queue_seconds);
    f.prompt_tokens.Increment(count(usage.prompt_tokens));
    if (seen.uses_prefix_cache) {
      f.prefix_queries.Increment(count(usage.prompt_tokens));
      f.prefix_hits.Increment(count(usage.cached_tokens));
    }
  }
  const int64_t more = usage.completion_tokens - seen.completion_tokens;
  if (more > 0) {
    f.generation_tokens.Increment(count(more));
    if (seen.completion_tokens == 0) {
      f.first_token.Observe(usage.first_token_seconds);
      seen.last = now;
    } else {
      const double each = seconds_between(seen.last, now) / count(more);
      for (int64_t i = 0; i < more; ++i) f.inter_token.Observe(each);
      seen.last = now;
    }
    seen.completion_tokens = usage.completion_tokens;
  }
  if (!event.finish) return;
  f.whole.Observe(usage.seconds);
  f.prompt_lengths.Observe(count(usage.prompt_tokens));
  f.answer_lengths.Observe(count(usage.completion_tokens));
}

void ServerMetrics::count_http(const std::string& endpoint, int status) {
  families_->http.Add({{"endpoint", endpoint}, {"code", std::to_string(status)}}).Increment();
}

void ServerMetrics::count_vanished() {
  families_->vanished.Increment();
}

std::string ServerMetrics::text(const EngineStats& stats, const Gauges& gauges) const {
  Snapshot snapshot(options_.model);
  add_requests(snapshot, stats);
  add_passes(snapshot, stats);
  add_experts(snapshot, stats);
  snapshot.gauge("degu:http_requests_in_flight", "HTTP requests being answered.", gauges.in_flight);
  snapshot.gauge("degu:http_connections", "Open connections.", gauges.connections);
  snapshot.gauge("degu:ready", "1 while requests are taken.", gauges.ready ? 1 : 0);
  const double up = seconds_between(start_, Clock::now());
  snapshot.counter("degu:uptime_seconds_total", "Seconds since the start.", up);
  if (options_.price_per_hour > 0) {
    const double per_second = options_.price_per_hour / 3600;
    snapshot.counter("degu:cost_total", "Price of the machine since the start.", per_second * up);
    const double tokens = families_->prompt_tokens.Value() + families_->generation_tokens.Value();
    if (tokens > 0) {
      const char* name = "degu:cost_per_million_tokens";
      const char* help =
          "Price of a million tokens, prompt and drawn: over the seconds in passes "
          "(busy), or over all (uptime).";
      snapshot.gauge(name, help, per_second * stats.pass_seconds / tokens * 1e6,
                     {{"over", "busy"}});
      snapshot.gauge(name, help, per_second * up / tokens * 1e6, {{"over", "uptime"}});
    }
  }
  std::vector<MetricFamily> families = families_->registry.Collect();
  for (MetricFamily& each : snapshot.take()) families.push_back(std::move(each));
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace degu
