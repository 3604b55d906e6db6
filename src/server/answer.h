// One call on its way: its choices in the engine and what they have said.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "infer/engine.h"
#include "server/api_request.h"
#include "server/api_response.h"
#include "server/metrics.h"

namespace degu {

class HttpConnection;

class Answer {
 public:
  // Submits every choice of the call; throws what `Engine::submit` throws. `seed` is the call's own
  // or a drawn one, `id` the answer's.
  Answer(Engine& engine, std::shared_ptr<ServerMetrics> metrics, const ApiContext& context,
         int top_k, ApiCall call, uint64_t seed, const std::string& id);
  ~Answer() { cancel(); }
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  // The body, once all choices are over. ApiError when the client left or an answer failed.
  std::string whole(const HttpConnection& client);
  // Server-sent events as they come, each through `send`, which says whether the client took them.
  // False ends the connection.
  bool stream(const HttpConnection& client, const std::function<bool(std::string_view)>& send);

 private:
  // Waits for the next event of any choice. None when the client has left.
  std::optional<std::pair<size_t, Event>> next(const HttpConnection& client);
  // Another event that is there already.
  std::optional<std::pair<size_t, Event>> next_ready();
  std::pair<size_t, Event> book(Event&& event);
  void cancel();

  Engine& engine_;
  std::shared_ptr<ServerMetrics> metrics_;
  ApiCall call_;
  ResponseWriter writer_;
  EventQueue queue_;
  std::map<RequestId, size_t> running_;  // to choices
  Clock::time_point looked_;             // last, whether the client is still there
};

}  // namespace degu
