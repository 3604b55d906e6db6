// `degu bench checkpoint`, `degu bench decode`, `degu bench memory`: what serving costs on this
// machine, on models of any shape with random weights. `degu bench serve`: a server under load.
// `degu bench comm`: the links between the ranks of a job.
#pragma once

#include "cli/command.h"

namespace degu {

// Writes a checkpoint of random weights straight in a scheme's numbers, tensor by tensor.
Action attach_bench_checkpoint(CommandLine& line);
// Loads a checkpoint and times its load, prefill and decode, memory bandwidth probed beside them.
Action attach_bench_decode(CommandLine& line);
// Decoding with drafts against plain decoding, in turns.
Action attach_bench_speculation(CommandLine& line);
// One Mixture-of-Experts layer alone (cli/layer_bench.h).
Action attach_bench_layer(CommandLine& line);
// Collectives between the ranks of this job.
Action attach_bench_comm(CommandLine& line);
// The read bandwidth of this moment.
Action attach_bench_memory(CommandLine& line);
// A server under load (cli/serve_bench.h).
Action attach_bench_serve(CommandLine& line);

}  // namespace degu
