#include "server/answer.h"

#include <fmt/format.h>

#include <ctime>
#include <nlohmann/json.hpp>

#include "server/api_error.h"
#include "server/http_connection.h"

namespace degu {
namespace {

constexpr std::chrono::milliseconds kLookForClient{100};

}  // namespace

Answer::Answer(Engine& engine, std::shared_ptr<ServerMetrics> metrics, const ApiContext& context,
               int top_k, ApiCall call, uint64_t seed, const std::string& id)
    : engine_(engine),
      metrics_(std::move(metrics)),
      call_(std::move(call)),
      writer_(call_, *context.tokenizer, context.model, id, std::time(nullptr), top_k) {
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(context.limits.request_seconds));
  const bool reuses =
      !call_.request.routes && !(call_.request.echo && call_.request.sampling.logprobs >= 0);
  try {
    for (size_t i = 0; i < call_.choices(); ++i) {
      Request request = call_.choice(i, seed);
      request.deadline = deadline;
      auto seen = std::make_shared<ServerMetrics::Seen>();
      seen->uses_prefix_cache = reuses;
      // The engine may still tell of a cancelled answer when the server is gone.
      EventSink sink = [metrics = metrics_, seen, next = queue_.sink()](Event&& event) {
        metrics->saw_event(*seen, event);
        next(std::move(event));
      };
      running_.emplace(engine_.submit(std::move(request), std::move(sink)), i);
    }
  } catch (...) {
    cancel();
    throw;
  }
}

void Answer::cancel() {
  for (const auto& [id, choice] : running_) engine_.cancel(id);
  running_.clear();
}

std::pair<size_t, Event> Answer::book(Event&& event) {
  const auto found = running_.find(event.id);
  const size_t choice = found->second;
  if (event.finish) running_.erase(found);
  if (event.finish == FinishReason::kFailed) {
    throw ApiError(500, "server_error", "generation_failed",
                   fmt::format("the answer could not be computed: {}", event.error));
  }
  return {choice, std::move(event)};
}

std::optional<std::pair<size_t, Event>> Answer::next(const HttpConnection& client) {
  while (true) {
    if (Clock::now() - looked_ >= kLookForClient) {
      if (client.peer_gone()) return {};
      looked_ = Clock::now();
    }
    if (auto event = queue_.pop(kLookForClient)) return book(std::move(*event));
  }
}

std::optional<std::pair<size_t, Event>> Answer::next_ready() {
  if (auto event = queue_.pop(std::chrono::milliseconds(0))) return book(std::move(*event));
  return {};
}

std::string Answer::whole(const HttpConnection& client) {
  while (writer_.open() > 0) {
    auto event = next(client);
    if (!event) {
      metrics_->count_vanished();
      // Nobody reads this; it says what happened in the count of answers.
      throw ApiError(499, "client_error", "client_left", "the client left");
    }
    writer_.add(event->first, std::move(event->second));
  }
  return writer_.whole();
}

bool Answer::stream(const HttpConnection& client,
                    const std::function<bool(std::string_view)>& send) {
  const auto tell = [&](const std::string& text) { return text.empty() || send(text); };
  bool taken = tell(writer_.begin());
  try {
    while (taken && writer_.open() > 0) {
      auto event = next(client);
      if (!event) break;
      std::string text;
      // What came in the meantime goes in one write.
      for (; event; event = next_ready()) text += writer_.piece(event->first, event->second);
      taken = tell(text);
    }
    if (taken && writer_.open() == 0 && tell(writer_.end())) return true;
  } catch (const ApiError& error) {  // the status is out already
    if (tell(ResponseWriter::failure(to_json(error)))) return true;
  }
  metrics_->count_vanished();
  return false;
}

}  // namespace degu
