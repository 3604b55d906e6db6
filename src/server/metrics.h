// What /metrics shows: vLLM's names and meanings behind the prefix "degu:", and what a
// Mixture-of-Experts has beside them (docs/server.md lists all).
#pragma once

#include <memory>
#include <string>

#include "infer/engine.h"

namespace degu {

class ServerMetrics {
 public:
  struct Options {
    std::string model;          // label model_name
    double price_per_hour = 0;  // of the machine; 0: no cost is shown
  };
  explicit ServerMetrics(const Options& options);
  ~ServerMetrics();

  // What one answer has shown so far; belongs to the engine's thread.
  struct Seen {
    Clock::time_point last;
    int64_t completion_tokens = 0;
    bool started = false;
    bool uses_prefix_cache = true;
  };
  // Every event of every answer, on the engine's thread.
  void saw_event(Seen& seen, const Event& event);

  // Any thread.
  void count_http(const std::string& endpoint, int status);
  void count_vanished();  // a client that left before its answer was complete

  struct Gauges {
    int in_flight = 0;    // HTTP requests being answered
    int connections = 0;  // open
    bool ready = false;
  };
  // The text exposition format, version 0.0.4.
  std::string text(const EngineStats& stats, const Gauges& gauges) const;

 private:
  struct Families;
  Options options_;
  Clock::time_point start_ = Clock::now();
  std::unique_ptr<Families> families_;
};

}  // namespace degu
