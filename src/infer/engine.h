// The serving engine: requests in, streams of text out, all running sequences in one batch.
//
// Threads: `submit`, `cancel` and `stats` may be called from any thread. Either `start` gives the
// engine a thread of its own, or one caller drives it with `step`. Events arrive on that thread.
//
// Lifetime of a request: `submit` checks it and queues it; events follow until one has `finish`.
// Nothing is lost: whatever happens (end of text, limit, cancellation, deadline, `stop`, an error
// in a pass), each accepted request gets exactly one last event.
//
// Rules
// - The answer ends after the end-of-sequence token (its text is empty; it counts as a completion
//   token), unless ignore_eos; before the first stop string; at max_tokens; or when prompt and
//   answer together reach the context limit. The last two are FinishReason::kLength.
// - Text depends on the request alone (prompt, parameters, seed, model): not on other requests, the
//   cache, preemption, speculation or ranks.
// - A client that leaves calls `cancel`; its pages are free before the next pass.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "data/tokenizer.h"
#include "infer/request.h"
#include "infer/scheduler.h"
#include "infer/speculation.h"

namespace degu {

struct SpeculationOptions {
  int depth = 0;         // most drafts per sequence and pass; 0: none
  bool adaptive = true;  // choose by running estimates, down to none; false: always `depth`
};

struct EngineOptions {
  int64_t context = 0;         // most tokens of prompt and answer; 0: what the pages hold
  int max_running = 64;        // sequences in one batch, per lane
  int64_t max_waiting = 1024;  // requests in the queue; more are refused
  bool prefix_cache = true;
  SpeculationOptions speculation;
};

// Thrown by `submit` when the queue is full: try again later.
class QueueFull : public Error {
 public:
  explicit QueueFull(const std::string& message) : Error(ExitCode::kFailure, message) {}
};

// Thrown by `submit` once the engine is ending: ask another one.
class EngineClosed : public Error {
 public:
  EngineClosed() : Error(ExitCode::kFailure, "the engine takes no more requests") {}
};

struct EngineStats {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t pages = 0;         // all lanes
  int64_t pages_in_use = 0;  // held by running sequences
  int64_t pages_cached = 0;  // kept for later prompts; free when needed
  int64_t passes = 0;
  int64_t preemptions = 0;
  int64_t prompt_tokens = 0;  // of admitted requests
  int64_t cached_tokens = 0;  // of these, not computed thanks to the prefix cache
  int64_t completion_tokens = 0;
  std::array<int64_t, 5> finished{};                      // by FinishReason
  std::array<int64_t, kMaxDraftDepth> drafts_proposed{};  // by position after the last known token
  std::array<int64_t, kMaxDraftDepth> drafts_accepted{};
  std::vector<std::vector<int64_t>> load_LE;  // rows per MoE layer and expert
  double distinct_experts = 0;                // per MoE layer, mean over passes
  double pass_seconds = 0;                    // in passes, all together
  double exchange_seconds = 0;  // of these, this rank's exchanges of tokens with other ranks
  std::string failure;          // why no pass can run any more; empty while all is well
};

class Engine {
 public:
  // `drafter` may be null. References outlive the engine. ConfigError when the options do not fit
  // together.
  Engine(const Tokenizer& tokenizer, Lanes& lanes, const EngineOptions& options,
         std::unique_ptr<Drafter> drafter = nullptr);
  ~Engine();  // as stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // ConfigError when the request cannot be served at all (empty or too long a prompt, a token
  // outside the vocabulary, a parameter outside its range); QueueFull when the queue is full;
  // EngineClosed after drain, request_stop or stop.
  RequestId submit(Request request, EventSink sink);
  void cancel(RequestId id);  // unknown and finished ids are ignored
  EngineStats stats() const;
  int64_t context() const { return context_; }

  // One pass; false when there is nothing to do.
  bool step();
  void start();
  // The same on the calling thread (MPI wants its first one): passes until `request_stop` or until
  // a pass fails; then `stop`.
  void run() { loop(); }
  void request_stop();
  void stop();  // ends all requests (kCancelled) and the thread
  void
  drain();  // takes no more requests; returns when all are finished (start must have been called)

 private:
  struct Live;
  struct PassWork;
  using LivePtr = std::unique_ptr<Live>;

  void loop();
  void take_commands();
  void expire();
  void propose_drafts();
  void after_pass(const std::vector<LanePlan>& plans, const std::vector<PassOutput>& outputs,
                  double seconds);
  void read_rows(PassWork& work);
  void tell_prompt(PassWork& work);
  void accept(Live& live, const Sampled& sampled);
  void end(Live& live, FinishReason reason, std::string error = {});
  void deliver(Live& live);
  void finish(RequestId id);
  void fail_all(const std::string& reason);
  void count_pass(const std::vector<LanePlan>& plans, const std::vector<PassOutput>& outputs,
                  double seconds);
  void publish();

  const Tokenizer& tokenizer_;
  Lanes& lanes_;
  EngineOptions options_;
  int64_t context_;
  Scheduler scheduler_;
  std::unique_ptr<Drafter> drafter_;
  DepthChooser depth_;

  // The engine thread's own.
  std::map<RequestId, LivePtr> live_;
  std::map<const Sequence*, Live*> by_sequence_;
  EngineStats counted_;

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::vector<LivePtr> submitted_;
  std::vector<RequestId> cancelled_;
  EngineStats published_;
  RequestId next_id_ = 1;
  int64_t unfinished_ = 0;
  bool closed_ = false;  // no more requests
  bool stopping_ = false;
  std::thread thread_;
};

// Events of one request for a reader on another thread. Keeps what has come until it is read; holds
// no more than the answer.
class EventQueue {
 public:
  EventSink sink();  // shares the queue: it may outlive this object
  // The next event; none when `timeout` passed first.
  std::optional<Event> pop(std::chrono::milliseconds timeout);

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable ready;
    std::deque<Event> events;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace degu
