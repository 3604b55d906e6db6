#include "cli/plan_measure.h"

#include <memory>
#include <numeric>

#include "comm/thread_comm.h"
#include "infer/lanes.h"
#include "infer/memory_plan.h"
#include "model/load.h"
#include "train/run.h"

namespace degu {
namespace {

size_t growth(size_t before) {
  const size_t now = anonymous_bytes();
  return now > before ? now - before : 0;
}

// A prompt as long as a pass, whose rows all want logits.
PassPlan full_pass(const ModelShape& shape, int64_t tokens) {
  PassPlan plan;
  SequenceRows& rows = plan.sequences.emplace_back();
  for (int64_t t = 0; t < tokens; ++t) rows.tokens.push_back(static_cast<int32_t>(t % shape.vocab));
  rows.pages.resize(static_cast<size_t>(kv_pages_for(tokens)));
  std::iota(rows.pages.begin(), rows.pages.end(), 0);
  rows.fresh = rows.pages;
  return plan;
}

// One rank measures while the others wait.
template <class Measure>
void alone(Communicator& group, int rank, Measure&& measure) {
  group.barrier();
  if (group.rank() == rank) measure();
  group.barrier();
}

void run_full_pass(Communicator& group, Context& context, ModelRunner& runner, size_t before,
                   size_t& pass) {
  const PassPlan plan = full_pass(runner.shape(), runner.limits().rows);
  if (group.size() == 1) {
    runner.run(plan);
    pass = growth(before);
  } else if (group.rank() == 0) {
    GroupLanes lanes(group, context, runner);
    lanes.run(std::vector<PassPlan>(static_cast<size_t>(group.size()), plan));
    pass = growth(before);
  } else {
    GroupLanes::follow(group, context, runner);
  }
}

}  // namespace

MeasuredMemory measure_serving(const std::string& folder, const PlanServeArguments& a,
                               const ExpertPlacement& placement) {
  MeasuredMemory out;
  out.weights_P.resize(static_cast<size_t>(a.ranks));
  out.pages = kv_pages_for(a.pass_tokens);
  run_as_threads(a.ranks, [&](Communicator& group) {
    Context context({.threads = a.threads});
    CheckpointReader reader(folder);
    reader.share(group.size() > 1);
    const RunConfig config = checkpoint_config(reader);
    const int64_t here = config.model.moe.experts / group.size();
    std::unique_ptr<ParameterSet> parameters;
    for (int rank = 0; rank < group.size(); ++rank) {
      alone(group, rank, [&] {
        const size_t before = anonymous_bytes();
        parameters = load_for_inference(context, reader, config.model,
                                        activation_type(config.train.precision),
                                        {group.rank() * here, here}, placement);
        out.weights_P[static_cast<size_t>(rank)] = growth(before);
      });
    }
    size_t before = 0;
    alone(group, 0, [&] { before = anonymous_bytes(); });
    const Transformer model(*parameters, {.group = &group});
    const PassLimits limits{.rows = a.pass_tokens, .logit_rows = a.pass_tokens};
    const DType kv = a.kv == "int8" ? DType::kI8 : parameters->activation();
    ModelRunner runner(context, *parameters, model, limits, kv, static_cast<int32_t>(out.pages));
    run_full_pass(group, context, runner, before, out.pass);
  });
  return out;
}

}  // namespace degu
