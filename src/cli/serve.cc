// `degu serve`: an OpenAI-compatible HTTP server over a checkpoint.
#include "server/server.h"

#include <pthread.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "base/log.h"
#include "base/timer.h"
#include "cli/command.h"
#include "cli/serving_setup.h"
#include "server/access.h"
#include "server/chat_template.h"

namespace degu {
namespace {

struct ServeArguments {
  std::string checkpoint;
  std::string api_keys;
  int64_t max_waiting = 1024;
  double drain_seconds = 30;
  ServerOptions server;
  ServingArguments serving;
};

// The signals that ask for an end. Blocked in all threads from the start, so that one thread can
// wait for them and nothing is interrupted. SIGUSR1: mpirun passes it on without a time limit.
sigset_t end_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&set, signal);
  return set;
}

// Waits at most `seconds`; true when one of the signals came.
bool wait_for_signal(const sigset_t& set, double seconds) {
  const auto whole = static_cast<time_t>(seconds);
  const timespec limit{.tv_sec = whole,
                       .tv_nsec = static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
  return sigtimedwait(&set, nullptr, &limit) > 0;
}

// Ends the engine in order at the first signal, at once at the second.
class Ender {
 public:
  Ender(Server& server, Engine& engine, double drain_seconds)
      : thread_([&server, &engine, drain_seconds, this] {
          const sigset_t set = end_signals();
          while (!over_ && !wait_for_signal(set, 0.1)) {
          }
          if (over_) return;
          log_info("ending: no more requests; {} are being answered, for at most {} s",
                   server.in_flight(), drain_seconds);
          const Timer timer;
          while (!server.drain(0.05)) {
            if (timer.seconds() < drain_seconds && !wait_for_signal(set, 0.05)) continue;
            log_warn("{} requests are cut short", server.in_flight());
            break;
          }
          engine.request_stop();
        }) {}
  ~Ender() {
    over_ = true;
    thread_.join();
  }
  Ender(const Ender&) = delete;
  Ender& operator=(const Ender&) = delete;

 private:
  std::atomic<bool> over_{false};
  std::thread thread_;
};

std::string model_name(const ServeArguments& a) {
  if (!a.server.model.empty()) return a.server.model;
  std::filesystem::path path = std::filesystem::path(a.checkpoint).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

void find_keys(const ServeArguments& a, ServerOptions& options) {
  if (!a.api_keys.empty()) options.api_keys = read_api_keys(a.api_keys);
  if (const char* key = std::getenv("DEGU_API_KEY"); key != nullptr && *key != '\0') {
    check_api_key(key, "DEGU_API_KEY");
    options.api_keys.emplace_back(key);
  }
  if (options.api_keys.empty() && !is_loopback(options.host)) {
    log_warn(
        "{} is reachable from other machines and no API key is asked for; give --api-keys "
        "FILE or listen at 127.0.0.1",
        options.host);
  }
}

ExitCode serve(const ServeArguments& a) {
  const sigset_t set = end_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  Job job(a.serving.threads, a.serving.device);
  ServingSetup setup(job, a.checkpoint, a.serving);
  if (!setup.leads()) {
    setup.follow();
    return ExitCode::kDone;
  }
  ServerOptions options = a.server;
  options.model = model_name(a);
  options.bos = a.serving.bos;
  find_keys(a, options);
  EngineOptions engine_options = setup.engine_options();
  engine_options.max_waiting = a.max_waiting;
  Engine engine(setup.tokenizer(), setup.lanes(), engine_options, setup.make_drafter());
  const ModelShape& shape = setup.lanes().shape();
  Server server(engine, setup.tokenizer(), shape.vocab, shape.moe.top_k, options);
  const int port = server.start();
  std::printf("http://%s:%d\n", options.host.c_str(), port);
  std::fflush(stdout);
  log_info("serving {} at http://{}:{} (context {}, chat template {})", options.model, options.host,
           port, engine.context(), options.chat_template);
  {
    const Ender ender(server, engine, a.drain_seconds);
    engine.run();  // on this thread: MPI's calls belong to it
  }
  std::string failure = engine.stats().failure;
  if (failure.empty()) failure = server.failure();
  if (!failure.empty()) {
    // Whoever watches /ready is told before the port closes.
    server.fail(failure);
    std::this_thread::sleep_for(std::chrono::seconds(2));
  }
  server.drain(0);
  const int cut = server.in_flight();
  engine.stop();
  server.finish(a.server.limits.write_seconds);
  server.stop();
  if (job.context().device() == DeviceType::kCuda) {
    log_info("decode graphs: {}", setup.graphs().text());
  }
  if (!failure.empty()) throw CommError("serving ended: {}", failure);
  if (cut > 0) {
    log_warn("ended: {} requests were cut short; --drain-seconds gives them more time", cut);
  } else {
    log_info("ended: every accepted request was answered");
  }
  return ExitCode::kDone;
}

void add_limit_options(CommandLine& line, ServeArguments& a) {
  ServerLimits& limits = a.server.limits;
  line.option("--max-concurrent", limits.concurrent, "requests answered at once; more get 429")
      .positive();
  line.option("--max-connections", limits.connections,
              "open connections, a thread each; more than --max-concurrent")
      .positive();
  line.option("--max-waiting", a.max_waiting, "answers in the engine's queue; more get 429")
      .positive();
  line.option("--max-answer-tokens", limits.max_tokens,
              "most tokens a request may ask for; 0: the context")
      .non_negative();
  line.option("--max-body", limits.body_bytes, "most bytes of a request's body").positive();
  line.option("--max-prompts", limits.prompts, "most prompts in one request").positive();
  line.option("--max-n", limits.n, "most answers per prompt").positive();
  line.option("--max-choices", limits.choices, "most answers of one request, prompts times n")
      .positive();
  line.option("--request-timeout", limits.request_seconds,
              "seconds from arrival to the last token; the answer ends there")
      .positive();
  line.option("--read-timeout", limits.read_seconds, "seconds between two bytes of a request")
      .positive();
  line.option("--write-timeout", limits.write_seconds,
              "seconds in which a client takes one piece of an answer")
      .positive();
  line.option("--drain-seconds", a.drain_seconds,
              "seconds that running requests have to end after SIGTERM")
      .non_negative();
}

}  // namespace

Action attach_serve(CommandLine& line) {
  auto a = std::make_shared<ServeArguments>();
  a->server.model.clear();
  std::vector<std::string> templates;
  for (const ChatTemplate& each : chat_templates()) templates.emplace_back(each.name);
  line.option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--host", a->server.host, "address to listen at");
  line.option("--port", a->server.port, "port to listen at; 0: a free one").within(0, 65535);
  line.option("--model-name", a->server.model,
              "the model's name for clients (default: the checkpoint's last folder)");
  line.option("--chat-template", a->server.chat_template, "how a conversation becomes a prompt")
      .among(templates);
  line.option("--api-keys", a->api_keys,
              "file with an API key per line; DEGU_API_KEY adds one; without: open to all who "
              "reach the port");
  line.option("--allow-host", a->server.allowed_hosts,
              "a further name by which a loopback server may be asked for; may be repeated");
  line.option("--cors", a->server.cors_origin,
              "origin whose pages may ask (\"*\": any; default: none)");
  line.option("--price-per-hour", a->server.price_per_hour,
              "of this machine, for the cost in /metrics and on the page")
      .non_negative();
  add_limit_options(line, *a);
  add_serving_options(line, a->serving);
  return [a] { return serve(*a); };
}

}  // namespace degu
