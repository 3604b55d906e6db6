#include "infer/lanes.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/log.h"

namespace degu {
namespace {

// Message: one encoded plan per lane, each behind its length; an empty message ends the job.
std::string encode_all(std::span<const PassPlan> plans) {
  std::string message;
  for (const PassPlan& plan : plans) {
    const std::string bytes = encode_plan(plan);
    const auto size = static_cast<uint64_t>(bytes.size());
    message.append(reinterpret_cast<const char*>(&size), sizeof(size));
    message += bytes;
  }
  return message;
}

std::vector<PassPlan> decode_all(std::string_view message, int lanes) {
  std::vector<PassPlan> plans;
  for (int i = 0; i < lanes; ++i) {
    uint64_t size = 0;
    if (message.size() < sizeof(size)) throw DataError("a message of plans is cut short");
    std::memcpy(&size, message.data(), sizeof(size));
    message.remove_prefix(sizeof(size));
    if (message.size() < size) throw DataError("a message of plans is cut short");
    plans.push_back(decode_plan(message.substr(0, size)));
    message.remove_prefix(size);
  }
  return plans;
}

int moe_layers(const ModelShape& shape) {
  int count = 0;
  for (int l = 0; l < shape.layers; ++l) count += shape.is_moe_layer(l);
  return count;
}

// Moves rows of every rank to rank 0; row counts are known to all from the plans.
void collect(Communicator& group, Context& context, AnyView mine, AnyView all,
             const std::vector<int64_t>& rows) {
  std::vector<int64_t> send(rows.size(), 0);
  std::vector<int64_t> receive(rows.size(), 0);
  send[0] = rows[static_cast<size_t>(group.rank())];
  if (group.rank() == 0) receive = rows;
  group.all_to_all_rows(context, mine, send, all, receive).wait();
}

// Where rank 0 receives.
struct Gathered {
  AnyView logit_RV;
  AnyView expert_LRK;
};
Gathered gather_views(Arena& arena, const ModelShape& shape, const PassLimits& limits, int ranks) {
  Gathered all;
  all.logit_RV = arena.take(DType::kF32, {ranks * limits.logit_rows, shape.vocab});
  if (moe_layers(shape) > 0) {
    all.expert_LRK =
        arena.take(DType::kI32, {moe_layers(shape), ranks * limits.rows, shape.moe.top_k});
  }
  return all;
}

// The part of one pass that all ranks do alike. On rank 0 `logit_RV` and `expert_LRK` receive.
PassOutput run_together(Communicator& group, Context& context, ModelRunner& runner,
                        std::span<const PassPlan> plans, AnyView logit_RV, AnyView expert_LRK) {
  PassOutput out = runner.run(plans[static_cast<size_t>(group.rank())]);
  std::vector<int64_t> logit_rows;
  std::vector<int64_t> rows;
  for (const PassPlan& plan : plans) {
    logit_rows.push_back(plan.logit_rows());
    rows.push_back(plan.rows());
  }
  collect(group, context, out.logit_RV, logit_RV, logit_rows);
  for (size_t l = 0; l < out.expert_LTK.size(); ++l) {
    AnyView all = out.expert_LTK[l].rows(0, 0);
    if (expert_LRK) {
      const int64_t most = expert_LRK.dim(1);
      all = expert_LRK.reshaped({expert_LRK.dim(0) * most, expert_LRK.dim(2)})
                .rows(static_cast<int64_t>(l) * most, most);
    }
    collect(group, context, out.expert_LTK[l], all, rows);
  }
  return out;
}

}  // namespace

GroupLanes::GroupLanes(Communicator& group, Context& context, ModelRunner& runner)
    : group_(group),
      context_(context),
      runner_(runner),
      arena_(gather_bytes(runner.shape(), runner.limits(), group.size())) {
  const Gathered all = gather_views(arena_, runner.shape(), runner.limits(), group.size());
  logit_RV_ = all.logit_RV;
  expert_LRK_ = all.expert_LRK;
}

size_t GroupLanes::gather_bytes(const ModelShape& shape, const PassLimits& limits, int ranks) {
  Arena counter = Arena::measuring();
  gather_views(counter, shape, limits, ranks);
  return counter.used();
}

GroupLanes::~GroupLanes() {
  try {
    group_.broadcast_text("", 0);
  } catch (const std::exception& error) {  // the group is gone: nobody is left to tell
    log_warn("the ranks that follow could not be told to end: {}", error.what());
  }
}

std::vector<PassOutput> GroupLanes::run(std::span<const PassPlan> plans) {
  group_.broadcast_text(encode_all(plans), 0);
  const PassOutput own = run_together(group_, context_, runner_, plans, logit_RV_, expert_LRK_);
  std::vector<PassOutput> outputs(plans.size());
  int64_t logit_row = 0;
  int64_t row = 0;
  outputs.front().exchange_seconds = own.exchange_seconds;
  for (size_t i = 0; i < plans.size(); ++i) {
    outputs[i].logit_RV = logit_RV_.rows(logit_row, plans[i].logit_rows()).as<float>();
    for (size_t l = 0; l < own.expert_LTK.size(); ++l) {
      const int64_t most = expert_LRK_.dim(1);
      const AnyView flat = expert_LRK_.reshaped({expert_LRK_.dim(0) * most, expert_LRK_.dim(2)});
      outputs[i].expert_LTK.push_back(
          flat.rows(static_cast<int64_t>(l) * most + row, plans[i].rows()));
    }
    logit_row += plans[i].logit_rows();
    row += plans[i].rows();
  }
  return outputs;
}

void GroupLanes::follow(Communicator& group, Context& context, ModelRunner& runner) {
  while (true) {
    const std::string message = group.broadcast_text("", 0);
    if (message.empty()) return;
    const std::vector<PassPlan> plans = decode_all(message, group.size());
    const AnyView nothing = runner.shape().vocab > 0
                                ? AnyView(nullptr, DType::kF32, {0, runner.shape().vocab})
                                : AnyView{};
    run_together(group, context, runner, plans, nothing, AnyView{});
  }
}

}  // namespace degu
