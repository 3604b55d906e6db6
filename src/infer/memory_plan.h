// Memory of a serving rank that is neither weights nor cache, known before the first request; and
// what the process really takes.
#pragma once

#include <cstddef>

#include "infer/runner.h"

namespace degu {

// A bound on the scratch memory (Context::scratch) that a pass of at most `limits` takes on each of
// `ranks` ranks: the largest of its phases (attention, router and experts, dense feed-forward,
// head), with the copies that quantized products read, the rows on their way between ranks when
// every token of every rank visits this one, and what kernels keep per thread.
size_t scratch_bytes(int threads, ParameterSet& parameters, const PassLimits& limits, int ranks);

// Bytes of this process that are in memory now. IoError when the system does not say.
size_t resident_bytes();
// The most of them that were in memory at once.
size_t peak_resident_bytes();
// Of those in memory now, what no file backs: data, not programs and libraries.
size_t anonymous_bytes();

}  // namespace degu
