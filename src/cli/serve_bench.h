// `degu bench serve`: requests that arrive whether or not the server keeps up, and what their
// senders lived through.
//
// Open loop: request i is sent at its own time t_i, drawn beforehand; answers that are late do not
// delay the next request. Between arrivals lie -log(1 - u_i) / rate seconds, u_i from a
// counter-based stream, so a seed gives the same arrivals anywhere.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/http_client.h"

namespace degu {

struct RequestSize {
  int64_t prompt_tokens = 0;
  int64_t max_tokens = 0;
};

// Lines "prompt_tokens,max_tokens"; a first line of words is a heading. DataError with file:line.
std::vector<RequestSize> read_request_sizes(const std::string& path);
// Seconds from the start, ascending, the first at 0. `rate`: requests per second.
std::vector<double> poisson_arrivals(int64_t requests, double rate, uint64_t seed);

struct LoadOptions {
  int64_t requests = 100;
  double rate = 1;                 // requests per second
  std::vector<RequestSize> sizes;  // used in turn
  uint64_t seed = 1;
  std::string model;  // "": the first of /v1/models
  int64_t vocab = 0;  // prompts as random token ids below this; 0: as words
  double temperature = 1;
  bool ignore_eos = false;  // asks for answers of full length: not every server knows it
  double slo_ttft = 0;      // seconds; 0: none
  double slo_itl = 0;
  HttpOptions http;
};

// What one request lived through; times in seconds.
struct RequestOutcome {
  double planned = 0;  // arrival, from the start
  double late = 0;     // sent so much after it
  int status = 0;
  std::string error;         // "" when the whole answer came
  double ttft = 0;           // from sending to the first text
  double seconds = 0;        // from sending to the end
  std::vector<double> gaps;  // between pieces of text
  int64_t pieces = 0;
  int64_t prompt_tokens = 0;  // as the server counts; what was asked for when it does not say
  int64_t answer_tokens = 0;  // likewise; pieces when it does not say

  bool complete() const { return error.empty(); }
  // Mean time between tokens; 0 for a single one.
  double seconds_per_token() const;
};

struct LoadReport {
  std::string model;
  std::vector<RequestOutcome> requests;
  double seconds = 0;  // from the first arrival to the last answer's end
};

// Runs the load. IoError when the server cannot be asked for its models.
LoadReport run_load(const HttpAddress& address, const LoadOptions& options);

// Whether a complete request kept the objectives: its first text within slo_ttft and its mean time
// between tokens within slo_itl.
bool meets(const RequestOutcome& outcome, const LoadOptions& options);

nlohmann::ordered_json to_json(const LoadReport& report, const LoadOptions& options);
void print_load(const LoadReport& report, const LoadOptions& options);

}  // namespace degu
