// Things that all ranks must know or decide alike.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "base/cpu_info.h"
#include "comm/communicator.h"

namespace degu {

// Runs `body` on every rank. When it throws on some, every rank throws an error of the same kind
// with the reason of the lowest such rank, "rank 2: …". The body must make no collective call.
// Collective.
void run_together(Communicator& comm, const std::function<void()>& body);

// ConfigError naming `what` and both ranks unless all ranks hold equal text. Collective.
void require_equal(Communicator& comm, std::string_view what, std::string_view text);

int64_t min_over_ranks(Communicator& comm, int64_t value);  // collective
int64_t max_over_ranks(Communicator& comm, int64_t value);  // collective

// The least of the ranks' instruction sets (default_isa of each). Floating-point results are
// promised per instruction set, so a job computes on one. Collective.
Isa agree_on_isa(Communicator& comm);

}  // namespace degu
