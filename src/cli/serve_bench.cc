#include "cli/serve_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/random.h"
#include "cli/completion_stream.h"
#include "infer/cost.h"
#include "io/atomic_file.h"

namespace degu {
namespace {

using Json = nlohmann::ordered_json;
using SteadyClock = std::chrono::steady_clock;

double since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

bool parse_count(std::string_view text, int64_t& value) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) {
    text.remove_suffix(1);
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value > 0;
}

// Short common words: about a token each in most vocabularies.
constexpr const char* kWords[] = {
    "the",  "of",   "and", "to",   "in",   "is",   "that", "it",   "was",   "for",   "on",   "are",
    "as",   "with", "his", "they", "at",   "be",   "this", "have", "from",  "or",    "one",  "had",
    "by",   "word", "but", "not",  "what", "all",  "were", "we",   "can",   "said",  "time", "if",
    "will", "way",  "out", "many", "then", "them", "so",   "some", "would", "other", "into", "two"};

Json request_body(const LoadOptions& options, const std::string& model, int64_t index) {
  const RequestSize& size = options.sizes[static_cast<size_t>(index) % options.sizes.size()];
  Json body = {{"model", model},
               {"max_tokens", size.max_tokens},
               {"temperature", options.temperature},
               {"seed", index},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  const RandomStream stream(options.seed, "load prompts", static_cast<uint64_t>(index));
  if (options.vocab > 0) {
    std::vector<int64_t> ids;
    for (int64_t t = 0; t < size.prompt_tokens; ++t) {
      ids.push_back(static_cast<int64_t>(
          stream.below(static_cast<uint64_t>(t), static_cast<uint64_t>(options.vocab))));
    }
    body["prompt"] = ids;
    return body;
  }
  std::string text;
  for (int64_t t = 0; t < size.prompt_tokens; ++t) {
    if (t > 0) text += ' ';
    text += kWords[stream.below(static_cast<uint64_t>(t), std::size(kWords))];
  }
  body["prompt"] = text;
  return body;
}

// The message of an answer that is no completion.
std::string refusal(const HttpReply& reply) {
  const CompletionPiece piece = read_completion(reply.body);
  std::string message = piece.error.empty() ? "no reason given" : piece.error;
  if (message.size() > 200) message.resize(200);
  return fmt::format("status {}: {}", reply.status, message);
}

class RequestRun {
 public:
  RequestRun(const HttpAddress& address, const LoadOptions& options, RequestOutcome& outcome)
      : address_(address), options_(options), outcome_(outcome) {}

  void run(const std::string& body) {
    start_ = SteadyClock::now();
    const HttpReply reply = http_post_stream(address_, "/v1/completions", body, options_.http,
                                             [&](std::string_view bytes) { return take(bytes); });
    outcome_.seconds = since(start_);
    outcome_.status = reply.status;
    if (outcome_.pieces == 0) outcome_.ttft = outcome_.seconds;
    if (outcome_.answer_tokens == 0) outcome_.answer_tokens = outcome_.pieces;
    if (!outcome_.error.empty()) return;
    if (!reply.error.empty() && !done_) {
      outcome_.error = reply.error;
    } else if (reply.status != 200) {
      outcome_.error = refusal(reply);
    } else if (!done_ && !finished_) {
      outcome_.error = "the stream ended before the answer did";
    }
  }

 private:
  bool take(std::string_view bytes) {
    if (!lines_.feed(bytes)) {
      outcome_.error = "an event of more than 1 MiB";
      return false;
    }
    while (const std::optional<std::string> data = lines_.next()) {
      const CompletionPiece piece = read_completion(*data);
      if (!piece.error.empty()) {
        outcome_.error = piece.error.substr(0, 200);
        return false;
      }
      if (piece.text) hear_text();
      if (piece.prompt_tokens >= 0) outcome_.prompt_tokens = piece.prompt_tokens;
      if (piece.answer_tokens >= 0) outcome_.answer_tokens = piece.answer_tokens;
      finished_ = finished_ || !piece.finish.empty();
      if (piece.done) {
        done_ = true;
        return false;  // nothing follows; a server that keeps the line open is not waited for
      }
    }
    return true;
  }

  void hear_text() {
    const double now = since(start_);
    if (outcome_.pieces == 0) {
      outcome_.ttft = now;
    } else {
      outcome_.gaps.push_back(now - last_);
    }
    last_ = now;
    ++outcome_.pieces;
  }

  const HttpAddress& address_;
  const LoadOptions& options_;
  RequestOutcome& outcome_;
  EventLines lines_;
  SteadyClock::time_point start_;
  double last_ = 0;
  bool finished_ = false;
  bool done_ = false;
};

std::string first_model(const HttpAddress& address, const LoadOptions& options) {
  const HttpReply reply = http_get(address, "/v1/models", options.http);
  if (!reply.error.empty()) {
    throw IoError("{}{}/v1/models: {}; is the server up?", address.server, address.base,
                  reply.error);
  }
  if (reply.status != 200) {
    throw IoError("{}{}/v1/models: {}", address.server, address.base, refusal(reply));
  }
  const Json json = Json::parse(reply.body, nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("data") && json["data"].is_array() &&
      !json["data"].empty() && json["data"][0].is_object() && json["data"][0].contains("id") &&
      json["data"][0]["id"].is_string()) {
    return json["data"][0]["id"].get<std::string>();
  }
  throw DataError("{}{}/v1/models: names no model; give --model", address.server, address.base);
}

struct Distribution {
  const char* name;
  std::vector<double> seconds;
};

std::vector<Distribution> distributions(const LoadReport& report) {
  std::vector<Distribution> out = {{"ttft", {}}, {"itl", {}}, {"e2e", {}}};
  for (const RequestOutcome& r : report.requests) {
    if (!r.complete()) continue;
    out[0].seconds.push_back(r.ttft);
    out[1].seconds.insert(out[1].seconds.end(), r.gaps.begin(), r.gaps.end());
    out[2].seconds.push_back(r.seconds);
  }
  return out;
}

struct Totals {
  int64_t complete = 0, good = 0, prompt_tokens = 0, answer_tokens = 0;
  double latest = 0;  // largest delay of sending
  std::map<std::string, int64_t> errors;
};

Totals totals_of(const LoadReport& report, const LoadOptions& options) {
  Totals t;
  for (const RequestOutcome& r : report.requests) {
    t.latest = std::max(t.latest, r.late);
    if (!r.complete()) {
      ++t.errors[r.error];
      continue;
    }
    ++t.complete;
    t.good += meets(r, options);
    t.prompt_tokens += r.prompt_tokens;
    t.answer_tokens += r.answer_tokens;
  }
  return t;
}

}  // namespace

std::vector<RequestSize> read_request_sizes(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<RequestSize> sizes;
  int64_t number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    if (line.empty() || line == "\r") continue;
    const size_t comma = line.find(',');
    RequestSize size;
    const bool whole = comma != std::string::npos &&
                       parse_count(std::string_view(line).substr(0, comma), size.prompt_tokens) &&
                       parse_count(std::string_view(line).substr(comma + 1), size.max_tokens);
    if (whole) {
      sizes.push_back(size);
    } else if (number > 1 || line.find_first_of("0123456789") != std::string::npos) {
      throw DataError("{}:{}: '{}' is not two whole numbers above 0: prompt_tokens,max_tokens",
                      path, number, line.substr(0, 80));
    }
  }
  if (sizes.empty()) {
    throw DataError("{}: no lengths in it; write lines of prompt_tokens,max_tokens", path);
  }
  return sizes;
}

std::vector<double> poisson_arrivals(int64_t requests, double rate, uint64_t seed) {
  const RandomStream stream(seed, "arrivals");
  std::vector<double> times;
  double now = 0;
  for (int64_t i = 0; i < requests; ++i) {
    times.push_back(now);
    now -= std::log1p(-stream.uniform(static_cast<uint64_t>(i))) / rate;
  }
  return times;
}

double RequestOutcome::seconds_per_token() const {
  return answer_tokens > 1 ? (seconds - ttft) / static_cast<double>(answer_tokens - 1) : 0;
}

bool meets(const RequestOutcome& outcome, const LoadOptions& options) {
  return outcome.complete() && (options.slo_ttft == 0 || outcome.ttft <= options.slo_ttft) &&
         (options.slo_itl == 0 || outcome.seconds_per_token() <= options.slo_itl);
}

LoadReport run_load(const HttpAddress& address, const LoadOptions& options) {
  LoadReport report;
  report.model = options.model.empty() ? first_model(address, options) : options.model;
  const std::vector<double> arrivals =
      poisson_arrivals(options.requests, options.rate, options.seed);
  report.requests.resize(arrivals.size());
  std::vector<std::string> bodies;  // made beforehand: sending costs nothing else
  for (size_t i = 0; i < arrivals.size(); ++i) {
    RequestOutcome& outcome = report.requests[i];
    outcome.planned = arrivals[i];
    outcome.prompt_tokens = options.sizes[i % options.sizes.size()].prompt_tokens;
    bodies.push_back(request_body(options, report.model, static_cast<int64_t>(i)).dump());
  }
  std::vector<std::thread> senders;
  const SteadyClock::time_point start = SteadyClock::now();
  for (size_t i = 0; i < arrivals.size(); ++i) {
    const auto at = start + std::chrono::duration_cast<SteadyClock::duration>(
                                std::chrono::duration<double>(arrivals[i]));
    std::this_thread::sleep_until(at);
    senders.emplace_back([&, i] {
      report.requests[i].late = since(start) - arrivals[i];
      RequestRun(address, options, report.requests[i]).run(bodies[i]);
    });
  }
  for (std::thread& sender : senders) sender.join();
  report.seconds = since(start);
  return report;
}

Json to_json(const LoadReport& report, const LoadOptions& options) {
  const Totals t = totals_of(report, options);
  Json out = {
      {"format", "degu bench serve 1"},
      {"model", report.model},
      {"requests", report.requests.size()},
      {"rate", options.rate},
      {"seconds", report.seconds},
      {"complete", t.complete},
      {"failed", static_cast<int64_t>(report.requests.size()) - t.complete},
      {"prompt_tokens", t.prompt_tokens},
      {"completion_tokens", t.answer_tokens},
      {"requests_per_second", static_cast<double>(t.complete) / report.seconds},
      {"completion_tokens_per_second", static_cast<double>(t.answer_tokens) / report.seconds},
      {"latest_send_seconds", t.latest}};
  for (const Distribution& d : distributions(report)) {
    Json entry;
    for (const auto& [name, p] :
         {std::pair{"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}}) {
      const std::optional<double> value = percentile(d.seconds, p);
      entry[name] = value ? Json(*value) : Json();
    }
    out[std::string(d.name) + "_seconds"] = entry;
  }
  out["slo"] = {{"ttft_seconds", options.slo_ttft}, {"itl_seconds", options.slo_itl}};
  out["good"] = t.good;
  out["goodput_requests_per_second"] = static_cast<double>(t.good) / report.seconds;
  out["errors"] = Json::object();
  for (const auto& [error, count] : t.errors) out["errors"][error] = count;
  return out;
}

void print_load(const LoadReport& report, const LoadOptions& options) {
  const Totals t = totals_of(report, options);
  fmt::print(
      "{}: {} of {} requests answered in {:.1f} s (arrivals {:g} a second): {:.2f} requests/s, "
      "{:.1f} answer tokens/s\n",
      report.model, t.complete, report.requests.size(), report.seconds, options.rate,
      static_cast<double>(t.complete) / report.seconds,
      static_cast<double>(t.answer_tokens) / report.seconds);
  fmt::print("{:<6} {:>10} {:>10} {:>10} {:>10}   ms\n", "", "p50", "p90", "p95", "p99");
  for (const Distribution& d : distributions(report)) {
    fmt::print("{:<6}", d.name);
    for (double p : {0.5, 0.9, 0.95, 0.99}) {
      const std::optional<double> value = percentile(d.seconds, p);
      fmt::print(" {:>10}", value ? fmt::format("{:.2f}", 1e3 * *value) : "-");
    }
    fmt::print("\n");
  }
  if (options.slo_ttft > 0 || options.slo_itl > 0) {
    fmt::print(
        "goodput: {} requests ({:.1f} %) within TTFT {:g} ms and {:g} ms a token: {:.2f} "
        "requests/s\n",
        t.good, 100.0 * static_cast<double>(t.good) / static_cast<double>(report.requests.size()),
        1e3 * options.slo_ttft, 1e3 * options.slo_itl,
        static_cast<double>(t.good) / report.seconds);
  }
  if (t.latest > 0.01) {
    fmt::print("sending fell behind its plan by up to {:.0f} ms\n", 1e3 * t.latest);
  }
  for (const auto& [error, count] : t.errors) fmt::print("{} failed: {}\n", count, error);
}

}  // namespace degu
