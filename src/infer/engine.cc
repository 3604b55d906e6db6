#include "infer/engine.h"

#include <algorithm>
#include <cmath>

#include "base/log.h"
#include "infer/text_stream.h"

namespace degu {
namespace {

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t context_of(const EngineOptions& options, const Lanes& lanes) {
  const int64_t most = int64_t{lanes.pages()} * kKvPageKeys;
  return options.context > 0 ? std::min(options.context, most) : most;
}

SchedulerOptions scheduler_options(const EngineOptions& options, const Lanes& lanes) {
  return {.pass = lanes.limits(),
          .max_running = options.max_running,
          .pages = lanes.pages(),
          .lanes = lanes.count(),
          .prefix_cache = options.prefix_cache};
}

int64_t routed_experts(const ModelShape& shape) {
  for (int l = 0; l < shape.layers; ++l) {
    if (shape.is_moe_layer(l)) return shape.moe.experts;
  }
  return 0;
}

}  // namespace

// A request on its way.
struct Engine::Live {
  RequestId id = 0;
  Request request;
  EventSink sink;
  Sequence sequence;
  Sampler sampler;
  TextStream text;
  StopFilter stops;
  Clock::time_point submitted = Clock::now();
  Usage usage;
  int64_t prompt = 0;  // tokens
  int64_t told = 0;    // tokens of the prompt that events have or will have, with echo
  bool started = false;

  // Tokens whose text the stop filter still holds, in order, each with the end of its text.
  struct Held {
    TokenRecord record;
    size_t text_end;
    int64_t position;
  };
  std::vector<Held> held;
  size_t text_fed = 0;                        // bytes given to the filter
  size_t text_shown = 0;                      // bytes it let through
  std::vector<std::vector<int32_t>> experts;  // by position, with request.routes
  std::vector<TokenRecord> ready;
  std::optional<FinishReason> finish;
  std::string error;

  Live(Request r, EventSink s, const Tokenizer& tokenizer, int64_t vocab)
      : request(std::move(r)),
        sink(std::move(s)),
        sampler(request.sampling, vocab),
        text(tokenizer),
        stops(request.stop),
        prompt(static_cast<int64_t>(request.prompt.size())) {
    sequence.tokens = request.prompt;
    sampler.observe_prompt(request.prompt);
    const bool scores = request.echo && request.sampling.logprobs >= 0;
    if (scores) sequence.score_from = 0;
    // Cached pages have neither logits nor routes.
    sequence.reuse_prefix = !scores && !request.routes;
  }

  void hold(TokenRecord record, int64_t position) {
    record.text = text.append(record.token);
    text_fed += record.text.size();
    const std::string shown = position < prompt ? record.text : stops.feed(record.text);
    if (position < prompt) {
      text_shown = text_fed;  // stop strings are looked for in the answer only
    } else {
      text_shown += shown.size();
    }
    held.push_back({std::move(record), text_fed, position});
  }
  // The text is over: what the filter and half a character still held may go, up to a stop string.
  void finish_text() {
    const std::string rest = text.finish();
    if (!held.empty()) {
      held.back().record.text += rest;
      held.back().text_end += rest.size();
      text_shown += stops.feed(rest).size();
    }
    text_shown += stops.finish().size();
  }
  // Moves what may be told to `ready`. At the end everything goes, the last text cut to what the
  // filter let through; tokens wholly behind a stop string are dropped.
  void release() {
    size_t count = 0;
    for (Held& h : held) {
      const size_t begin = h.text_end - h.record.text.size();
      if (h.text_end > text_shown) {
        if (!finish || begin >= text_shown) break;
        h.record.text.resize(text_shown - begin);
      }
      if (request.routes) {
        const auto at = static_cast<size_t>(h.position);
        if (at >= experts.size() && !finish) break;  // the pass that reads it is still to come
        if (at < experts.size()) h.record.experts_LK = experts[at];
      }
      ready.push_back(std::move(h.record));
      ++count;
    }
    held.erase(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(count));
  }
};

Engine::Engine(const Tokenizer& tokenizer, Lanes& lanes, const EngineOptions& options,
               std::unique_ptr<Drafter> drafter)
    : tokenizer_(tokenizer),
      lanes_(lanes),
      options_(options),
      context_(context_of(options, lanes)),
      scheduler_(scheduler_options(options, lanes)),
      drafter_(std::move(drafter)),
      depth_(routed_experts(lanes.shape()), lanes.shape().moe.top_k,
             drafter_ ? options.speculation.depth : 0, !options.speculation.adaptive) {
  const ModelShape& shape = lanes.shape();
  if (tokenizer.vocab_size() > shape.vocab) {
    throw ConfigError("the tokenizer has {} tokens, the model {}; use the model's own tokenizer",
                      tokenizer.vocab_size(), shape.vocab);
  }
  for (int l = 0; l < shape.layers; ++l) {
    if (shape.is_moe_layer(l)) {
      counted_.load_LE.emplace_back(static_cast<size_t>(shape.moe.experts), 0);
    }
  }
  publish();
}

Engine::~Engine() {
  stop();
}

RequestId Engine::submit(Request request, EventSink sink) {
  const int64_t vocab = lanes_.shape().vocab;
  request.sampling.check(vocab);
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length == 0) throw ConfigError("the prompt is empty; give at least one token");
  if (request.max_tokens < 0) {
    throw ConfigError("max_tokens is {}; it must be 0 or more", request.max_tokens);
  }
  if (length >= context_ + (request.max_tokens == 0 ? 1 : 0)) {
    throw ConfigError("the prompt has {} tokens; the context of {} leaves no room for an answer",
                      length, context_);
  }
  for (int32_t token : request.prompt) {
    if (token < 0 || token >= vocab) {
      throw ConfigError("token {} of the prompt is not in the vocabulary of {}", token, vocab);
    }
  }
  auto live = std::make_unique<Live>(std::move(request), std::move(sink), tokenizer_, vocab);
  const std::lock_guard lock(mutex_);
  if (closed_) throw EngineClosed();
  if (published_.waiting + static_cast<int64_t>(submitted_.size()) >= options_.max_waiting) {
    throw QueueFull(
        fmt::format("{} requests are waiting already; try again later", options_.max_waiting));
  }
  live->id = next_id_++;
  const RequestId id = live->id;
  submitted_.push_back(std::move(live));
  ++unfinished_;
  wake_.notify_all();
  return id;
}

void Engine::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancelled_.push_back(id);
  wake_.notify_all();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = published_;
  stats.waiting += static_cast<int64_t>(submitted_.size());
  return stats;
}

void Engine::publish() {
  counted_.running = scheduler_.running();
  counted_.waiting = scheduler_.waiting();
  counted_.pages = int64_t{lanes_.pages()} * lanes_.count();
  counted_.pages_cached = scheduler_.pages_cached();
  counted_.pages_in_use = scheduler_.pages_in_use();
  counted_.preemptions = scheduler_.preemptions();
  const std::lock_guard lock(mutex_);
  published_ = counted_;
}

// ---- the thread ----

void Engine::start() {
  thread_ = std::thread([this] { loop(); });
}

void Engine::loop() {
  while (true) {
    if (step()) continue;
    if (!counted_.failure.empty()) {  // those that came while the pass failed
      take_commands();
      fail_all(counted_.failure);
      return;
    }
    std::unique_lock lock(mutex_);
    if (stopping_) return;
    if (submitted_.empty() && cancelled_.empty()) {
      // Deadlines of requests that wait for pages are looked at now and then.
      wake_.wait_for(lock, std::chrono::milliseconds(20));
    }
  }
}

void Engine::request_stop() {
  const std::lock_guard lock(mutex_);
  closed_ = stopping_ = true;
  wake_.notify_all();
}

void Engine::stop() {
  request_stop();
  if (thread_.joinable()) thread_.join();
  take_commands();
  for (auto& [id, live] : live_) {
    if (!live->finish) end(*live, FinishReason::kCancelled);
  }
  while (!live_.empty()) finish(live_.begin()->first);
  publish();
}

void Engine::drain() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  idle_.wait(lock, [&] { return unfinished_ == 0; });
}

void Engine::take_commands() {
  std::vector<LivePtr> submitted;
  std::vector<RequestId> cancelled;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
    published_.waiting += static_cast<int64_t>(submitted.size());  // until the next `publish`
  }
  for (LivePtr& live : submitted) {
    live->sequence.arrival = live->id;
    by_sequence_[&live->sequence] = live.get();
    scheduler_.add(live->sequence);
    counted_.prompt_tokens += live->prompt;
    live_.emplace(live->id, std::move(live));
  }
  for (RequestId id : cancelled) {
    const auto found = live_.find(id);
    if (found == live_.end()) continue;
    end(*found->second, FinishReason::kCancelled);
    finish(id);
  }
}

void Engine::expire() {
  const Clock::time_point now = Clock::now();
  std::vector<RequestId> late;
  for (auto& [id, live] : live_) {
    if (live->request.deadline && now >= *live->request.deadline) late.push_back(id);
  }
  for (RequestId id : late) {
    end(*live_.at(id), FinishReason::kDeadline);
    finish(id);
  }
}

bool Engine::step() {
  take_commands();
  expire();
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return false;
  }
  if (live_.empty()) {
    publish();
    return false;
  }
  try {
    propose_drafts();
    const std::vector<LanePlan> plans = scheduler_.plan();
    std::vector<PassPlan> passes;
    int64_t rows = 0;
    for (const LanePlan& plan : plans) {
      rows += plan.pass.rows();
      passes.push_back(plan.pass);
    }
    if (rows == 0) return false;
    const Clock::time_point start = Clock::now();
    const std::vector<PassOutput> outputs = lanes_.run(passes);
    after_pass(plans, outputs, since(start));
  } catch (const std::exception& error) {
    fail_all(error.what());
  }
  publish();
  return true;
}

void Engine::fail_all(const std::string& reason) {
  if (counted_.failure.empty()) log_error("serving: a pass failed: {}", reason);
  counted_.failure = reason;
  for (auto& [id, live] : live_) {
    if (!live->finish) end(*live, FinishReason::kFailed, reason);
  }
  while (!live_.empty()) finish(live_.begin()->first);
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

// ---- one pass ----

void Engine::propose_drafts() {
  if (!drafter_ || options_.speculation.depth == 0) return;
  std::vector<DraftTask> tasks;
  int64_t decoding = 0;
  for (auto& [sequence, live] : by_sequence_) decoding += sequence->decoding();
  const int depth = depth_.choose(decoding);
  for (auto& [id, live] : live_) {
    Sequence& s = live->sequence;
    s.drafts.clear();
    if (!s.decoding() || depth == 0) continue;
    // The last token needs no guess behind it.
    const int64_t left = std::min(live->request.max_tokens - live->usage.completion_tokens,
                                  context_ - static_cast<int64_t>(s.tokens.size())) -
                         1;
    const auto wanted = static_cast<int>(std::clamp<int64_t>(left, 0, depth));
    if (wanted == 0) continue;
    tasks.push_back({.key = id,
                     .tokens = s.tokens,
                     .sampler = &live->sampler,
                     .depth = wanted,
                     .drafts = &s.drafts});
  }
  if (tasks.empty()) return;
  const Clock::time_point start = Clock::now();
  drafter_->propose(tasks);
  int64_t drafts = 0;
  for (const DraftTask& task : tasks) drafts += static_cast<int64_t>(task.drafts->size());
  depth_.saw_draft(drafts, since(start));
}

// What a sequence got out of a pass; made by one thread, then booked by the engine's.
struct Engine::PassWork {
  Live* live;
  const Planned* planned;
  const SequenceRows* rows;
  const PassOutput* out;
  int64_t logit_row;  // of the pass, where the sequence's begin
  int64_t row;
  int64_t accepted = 0;  // drafts that stood

  std::span<const float> logits_of(int64_t wanted) const {
    const View<float> all = out->logit_RV;
    return {all.row(logit_row + wanted), static_cast<size_t>(all.dim(1))};
  }
};

void Engine::after_pass(const std::vector<LanePlan>& plans, const std::vector<PassOutput>& outputs,
                        double seconds) {
  count_pass(plans, outputs, seconds);
  std::vector<PassWork> work;
  for (size_t lane = 0; lane < plans.size(); ++lane) {
    int64_t logit_row = 0;
    int64_t row = 0;
    for (size_t i = 0; i < plans[lane].planned.size(); ++i) {
      const Planned& planned = plans[lane].planned[i];
      const SequenceRows& rows = plans[lane].pass.sequences[i];
      work.push_back({.live = by_sequence_.at(planned.sequence),
                      .planned = &planned,
                      .rows = &rows,
                      .out = &outputs[lane],
                      .logit_row = logit_row,
                      .row = row});
      logit_row += rows.logit_rows();
      row += rows.rows();
    }
  }
  for (const PassWork& w : work) {
    if (w.live->started) continue;
    w.live->started = true;
    w.live->usage.queue_seconds = since(w.live->submitted) - seconds;
    w.live->usage.cached_tokens = w.live->sequence.reused;
    counted_.cached_tokens += w.live->sequence.reused;
  }
  // Sequences are independent, and each is sampled by one thread.
  lanes_.context().parallel_dynamic(static_cast<int64_t>(work.size()), [&](int64_t i, int) {
    read_rows(work[static_cast<size_t>(i)]);
  });
  for (const PassWork& w : work) {
    Sequence& sequence = w.live->sequence;
    scheduler_.advance(sequence, sequence.computed + w.planned->rows + w.accepted);
    if (w.planned->drafts > 0) {
      depth_.saw_acceptance(w.planned->drafts, w.accepted);
      for (int64_t d = 0; d < w.planned->drafts; ++d) {
        ++counted_.drafts_proposed[static_cast<size_t>(d)];
        counted_.drafts_accepted[static_cast<size_t>(d)] += d < w.accepted;
      }
    }
    if (w.live->finish) {
      finish(w.live->id);
    } else {
      deliver(*w.live);
    }
  }
}

// The part of a sequence's rows: scores of the prompt, then samples as long as drafts stand.
void Engine::read_rows(PassWork& w) {
  Live& live = *w.live;
  Sequence& s = live.sequence;
  const auto known = static_cast<int64_t>(s.tokens.size());
  if (live.request.echo) tell_prompt(w);
  if (w.planned->rows == s.pending()) {
    const int64_t first = w.rows->logit_rows() - 1 - w.planned->drafts;
    if (live.request.max_tokens == 0) end(live, FinishReason::kLength);
    for (int64_t d = 0; !live.finish && d <= w.planned->drafts; ++d) {
      const Sampled sampled = live.sampler.sample(w.logits_of(first + d), known + d);
      accept(live, sampled);
      if (d == w.planned->drafts || s.drafts[static_cast<size_t>(d)] != sampled.token) break;
      ++w.accepted;
    }
  }
  if (!live.request.routes) return;
  // Rows of drafts that fell are not part of the sequence.
  const int64_t k = lanes_.shape().moe.top_k;
  live.experts.resize(static_cast<size_t>(s.computed + w.planned->rows + w.accepted));
  for (int64_t r = 0; r < w.planned->rows + w.accepted; ++r) {
    std::vector<int32_t>& experts = live.experts[static_cast<size_t>(s.computed + r)];
    experts.clear();
    for (const AnyView& layer : w.out->expert_LTK) {
      const int32_t* from = layer.as<const int32_t>().data() + (w.row + r) * k;
      experts.insert(experts.end(), from, from + k);
    }
  }
}

// The tokens of the prompt as far as they can be told now: all of them, or with scores those that
// this pass's logits judge.
void Engine::tell_prompt(PassWork& w) {
  Live& live = *w.live;
  Sequence& s = live.sequence;
  const SamplingParams& sampling = live.request.sampling;
  const auto tell = [&](std::optional<float> logprob, std::vector<TokenLogprob> top) {
    const int32_t token = live.request.prompt[static_cast<size_t>(live.told)];
    live.hold({.token = token, .logprob = logprob, .top = std::move(top)}, live.told);
    ++live.told;
  };
  if (live.told == 0) tell({}, {});
  if (sampling.logprobs < 0) {
    while (live.told < live.prompt) tell({}, {});
    return;
  }
  const int64_t first_wanted = s.computed + w.rows->logits_from;
  for (int64_t p = std::max(first_wanted, live.told - 1);
       live.told < live.prompt && p < s.computed + w.planned->rows; ++p) {
    Sampled scored =
        score_token(w.logits_of(p - first_wanted),
                    live.request.prompt[static_cast<size_t>(live.told)], sampling.logprobs);
    tell(scored.logprob, std::move(scored.top));
  }
  s.score_from = live.told < live.prompt ? live.told - 1 : -1;
}

void Engine::accept(Live& live, const Sampled& sampled) {
  if (sampled.token < 0) {
    end(live, FinishReason::kFailed, "the model's logits are not numbers");
    return;
  }
  Usage& usage = live.usage;
  if (usage.completion_tokens++ == 0) usage.first_token_seconds = since(live.submitted);
  Sequence& s = live.sequence;
  s.tokens.push_back(sampled.token);
  live.sampler.observe(sampled.token);
  TokenRecord record{.token = sampled.token, .text = {}, .logprob = {}, .top = sampled.top};
  if (live.request.sampling.logprobs >= 0) record.logprob = sampled.logprob;
  live.hold(std::move(record), static_cast<int64_t>(s.tokens.size()) - 1);
  const bool eos = sampled.token == tokenizer_.eos_id() && !live.request.ignore_eos;
  if (eos || live.stops.stopped()) {
    end(live, FinishReason::kStop);
  } else if (usage.completion_tokens == live.request.max_tokens ||
             static_cast<int64_t>(s.tokens.size()) == context_) {
    end(live, FinishReason::kLength);
  }
}

// ---- ends ----

void Engine::end(Live& live, FinishReason reason, std::string error) {
  live.finish = reason;
  live.error = std::move(error);
  live.finish_text();
}

void Engine::deliver(Live& live) {
  live.release();
  if (live.ready.empty() && !live.finish) return;
  live.usage.prompt_tokens = live.prompt;
  live.usage.preemptions = live.sequence.preemptions;
  live.usage.seconds = since(live.submitted);
  live.sink({.id = live.id,
             .tokens = std::exchange(live.ready, {}),
             .finish = live.finish,
             .error = live.error,
             .usage = live.usage});
}

// The last event of an ended request; then nothing of it is left.
void Engine::finish(RequestId id) {
  const auto found = live_.find(id);
  Live& live = *found->second;
  deliver(live);
  counted_.completion_tokens += live.usage.completion_tokens;
  ++counted_.finished[static_cast<size_t>(*live.finish)];
  scheduler_.remove(live.sequence);
  if (drafter_) drafter_->forget(id);
  by_sequence_.erase(&live.sequence);
  live_.erase(found);
  const std::lock_guard lock(mutex_);
  if (--unfinished_ == 0) idle_.notify_all();
}

void Engine::count_pass(const std::vector<LanePlan>& plans, const std::vector<PassOutput>& outputs,
                        double seconds) {
  ++counted_.passes;
  counted_.pass_seconds += seconds;
  counted_.exchange_seconds += outputs.front().exchange_seconds;
  int64_t rows = 0;
  bool decode_only = true;
  for (const LanePlan& plan : plans) {
    rows += plan.pass.rows();
    for (const Planned& p : plan.planned) decode_only = decode_only && p.rows == 1;
  }
  double distinct = 0;
  std::vector<uint8_t> touched;
  for (size_t l = 0; l < counted_.load_LE.size(); ++l) {
    std::vector<int64_t>& load = counted_.load_LE[l];
    touched.assign(load.size(), 0);
    for (const PassOutput& out : outputs) {
      const View<const int32_t> chosen = out.expert_LTK[l].as<const int32_t>();
      for (int64_t i = 0; i < chosen.elements(); ++i) {
        const auto e = static_cast<size_t>(chosen[i]);
        ++load[e];
        touched[e] = 1;
      }
    }
    distinct += static_cast<double>(std::count(touched.begin(), touched.end(), uint8_t{1}));
  }
  if (!counted_.load_LE.empty()) distinct /= static_cast<double>(counted_.load_LE.size());
  counted_.distinct_experts +=
      (distinct - counted_.distinct_experts) / static_cast<double>(counted_.passes);
  if (decode_only) depth_.saw_pass(rows, distinct, seconds);
}

// ---- reading from another thread ----

EventSink EventQueue::sink() {
  return [state = state_](Event&& event) {
    const std::lock_guard lock(state->mutex);
    state->events.push_back(std::move(event));
    state->ready.notify_one();
  };
}

std::optional<Event> EventQueue::pop(std::chrono::milliseconds timeout) {
  std::unique_lock lock(state_->mutex);
  if (!state_->ready.wait_for(lock, timeout, [&] { return !state_->events.empty(); })) return {};
  Event event = std::move(state_->events.front());
  state_->events.pop_front();
  return event;
}

}  // namespace degu
