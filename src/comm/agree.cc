#include "comm/agree.h"

#include <algorithm>
#include <exception>

#include "base/log.h"

namespace degu {
namespace {

struct Outcome {
  bool failed = false;
  ExitCode code = ExitCode::kFailure;
  std::string reason;
};

Outcome attempt(const std::function<void()>& body) {
  try {
    body();
    return {};
  } catch (const Error& error) {
    return {true, error.exit_code(), error.what()};
  } catch (const std::exception& error) {
    return {true, ExitCode::kFailure, error.what()};
  } catch (...) {
    return {true, ExitCode::kFailure, "unknown exception"};
  }
}

[[noreturn]] void throw_as(ExitCode code, const std::string& reason) {
  switch (code) {
    case ExitCode::kUsage:
      throw ConfigError("{}", reason);
    case ExitCode::kIo:
      throw IoError("{}", reason);
    case ExitCode::kData:
      throw DataError("{}", reason);
    case ExitCode::kNumeric:
      throw NumericError("{}", reason);
    case ExitCode::kComm:
      throw CommError("{}", reason);
    case ExitCode::kDone:
    case ExitCode::kFailure:
    case ExitCode::kInterrupted:
      break;
  }
  throw Error(code, reason);
}

template <class Choose>
int64_t choose_over_ranks(Communicator& comm, int64_t value, Choose&& choose) {
  int64_t best = value;
  for (const std::string& text : comm.gather_text(std::to_string(value))) {
    best = choose(best, static_cast<int64_t>(std::stoll(text)));
  }
  return best;
}

}  // namespace

void run_together(Communicator& comm, const std::function<void()>& body) {
  if (comm.size() == 1) return body();
  const Outcome mine = attempt(body);
  // Nothing, or the code and the reason.
  const std::string line =
      mine.failed ? fmt::format("{} {}", static_cast<int>(mine.code), mine.reason) : std::string();
  const std::vector<std::string> all = comm.gather_text(line);
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].empty()) continue;
    const size_t space = all[r].find(' ');
    throw_as(static_cast<ExitCode>(std::stoi(all[r].substr(0, space))),
             fmt::format("rank {}: {}", r, all[r].substr(space + 1)));
  }
}

void require_equal(Communicator& comm, std::string_view what, std::string_view text) {
  const std::vector<std::string> all = comm.gather_text(text);
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r] == all[0]) continue;
    throw ConfigError("{} differs between ranks: '{}' on rank 0, '{}' on rank {}", what, all[0],
                      all[r], r);
  }
}

int64_t min_over_ranks(Communicator& comm, int64_t value) {
  return choose_over_ranks(comm, value, [](int64_t a, int64_t b) { return std::min(a, b); });
}

int64_t max_over_ranks(Communicator& comm, int64_t value) {
  return choose_over_ranks(comm, value, [](int64_t a, int64_t b) { return std::max(a, b); });
}

Isa agree_on_isa(Communicator& comm) {
  Isa mine = Isa::kPortable;
  run_together(comm, [&] { mine = default_isa(); });  // DEGU_ISA may be wrong on one node only
  const auto agreed = static_cast<Isa>(min_over_ranks(comm, static_cast<int64_t>(mine)));
  if (agreed != mine) {
    log_warn("computing on {}: another rank lacks this one's {}", isa_name(agreed), isa_name(mine));
  }
  return agreed;
}

}  // namespace degu
