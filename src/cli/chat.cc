// `degu chat`: a conversation on the terminal. Models here are trained on text, so by default each
// line goes on from all that was said before, and the model goes on from there.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>

#include "base/log.h"
#include "cli/command.h"
#include "cli/serving_setup.h"
#include "data/utf8.h"
#include "infer/engine.h"

namespace degu {
namespace {

struct ChatArguments {
  std::string checkpoint;
  int64_t max_tokens = 128;
  SamplingParams sampling;
  int64_t seed = 0;
  std::vector<std::string> stop;
  std::string before_line;
  std::string after_line = "\n";
  ServingArguments serving;
};

volatile std::sig_atomic_t interrupted = 0;

// While the model writes, an interrupt ends the answer, not the command.
class InterruptScope {
 public:
  InterruptScope() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &before_);
  }
  ~InterruptScope() { sigaction(SIGINT, &before_, nullptr); }
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  struct sigaction before_ {};
};

class Chat {
 public:
  Chat(const ChatArguments& arguments, ServingSetup& setup, Engine& engine)
      : a_(arguments), tokenizer_(setup.tokenizer()), engine_(engine) {
    reset();
  }

  void reset() {
    history_.clear();
    if (a_.serving.bos && tokenizer_.bos_id() >= 0) history_.push_back(tokenizer_.bos_id());
    kept_ = history_.size();
  }

  // The line, then the model's answer, streamed to standard output.
  void say(const std::string& line) {
    if (find_bad_utf8(line) != std::string::npos) {
      log_warn("that line is not UTF-8 text; it was not read");
      return;
    }
    const std::vector<int32_t> ids = tokenizer_.encode(a_.before_line + line + a_.after_line);
    history_.insert(history_.end(), ids.begin(), ids.end());
    make_room();
    if (history_.empty()) return;
    answer();
  }

 private:
  // The oldest tokens go when what was said leaves less than half the context for the answer, and
  // with them as many more that this does not happen at every line.
  void make_room() {
    const auto context = static_cast<size_t>(engine_.context());
    const size_t most = context - std::min(static_cast<size_t>(a_.max_tokens), context / 2);
    if (history_.size() <= most) return;
    const size_t target = std::max<size_t>(kept_ + 1, most / 2);
    const size_t gone = history_.size() - target;
    history_.erase(history_.begin() + static_cast<std::ptrdiff_t>(kept_),
                   history_.begin() + static_cast<std::ptrdiff_t>(kept_ + gone));
    log_info("the first {} tokens are forgotten: the context holds {}", gone, context);
  }

  void answer() {
    Request request{
        .prompt = history_, .max_tokens = a_.max_tokens, .sampling = a_.sampling, .stop = a_.stop};
    request.sampling.seed = static_cast<uint64_t>(a_.seed);
    std::string error;
    const InterruptScope scope;
    const RequestId id = engine_.submit(std::move(request), [&](Event&& event) {
      const std::string text = event.text();
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
      for (const TokenRecord& t : event.tokens) {
        if (t.token != tokenizer_.eos_id()) history_.push_back(t.token);
      }
      error = event.error;
    });
    bool cancelled = false;
    while (engine_.step()) {
      if (interrupted != 0 && !cancelled) engine_.cancel(id);
      cancelled = interrupted != 0;
    }
    std::printf("\n");
    std::fflush(stdout);
    if (!error.empty()) throw NumericError("{}", error);
  }

  const ChatArguments& a_;
  const Tokenizer& tokenizer_;
  Engine& engine_;
  std::vector<int32_t> history_;
  size_t kept_ = 0;  // tokens that are never forgotten: BOS
};

ExitCode chat(const ChatArguments& a) {
  Job job(a.serving.threads, a.serving.device);
  ServingSetup setup(job, a.checkpoint, a.serving);
  if (!setup.leads()) {
    setup.follow();
    return ExitCode::kDone;
  }
  Engine engine(setup.tokenizer(), setup.lanes(), setup.engine_options(), setup.make_drafter());
  Chat conversation(a, setup, engine);
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  if (terminal) {
    std::fputs(
        "a line and Enter; /reset forgets all, /quit or Ctrl-D ends, Ctrl-C ends an answer\n",
        stderr);
  }
  while (true) {
    if (terminal) std::fputs("> ", stderr);
    std::string line;
    if (!std::getline(std::cin, line)) break;
    if (line == "/quit") break;
    if (line == "/reset") {
      conversation.reset();
      continue;
    }
    if (line.starts_with('/') && !line.starts_with("//")) {
      log_warn("{}: no such command; /reset and /quit, or // for a line that begins with /", line);
      continue;
    }
    conversation.say(line.starts_with("//") ? line.substr(1) : line);
  }
  if (terminal) std::fputs("\n", stderr);
  return ExitCode::kDone;
}

}  // namespace

Action attach_chat(CommandLine& line) {
  auto a = std::make_shared<ChatArguments>();
  line.option("checkpoint", a->checkpoint, "a checkpoint, or the folder of a run").required();
  line.option("--max-tokens", a->max_tokens, "most tokens of an answer").positive();
  add_sampling_options(line, a->sampling);
  line.option("--seed", a->seed, "of the sampling noise");
  line.option("--stop", a->stop, "an answer ends before this string; may be repeated");
  line.option("--before", a->before_line, "text put before every line that is typed");
  line.option("--after", a->after_line, "and after it; default: a line break");
  add_serving_options(line, a->serving);
  return [a] { return chat(*a); };
}

}  // namespace degu
