// Recorded routes (`degu generate --routes`, train/step_routes.h), read back so that a pass sends
// each token to the experts it took then: what trains on a model's own text must not see other
// experts than served it.
#pragma once

#include <string>
#include <vector>

#include "shape/model_shape.h"
#include "train/compare.h"

namespace degu {

// One text and the experts its tokens took.
struct RecordedRoutes {
  std::vector<int32_t> tokens_T;
  // By MoE layer, token and slot, best first; -1 in every slot of a token whose experts nobody
  // recorded (the last token of an answer: no pass has read it).
  std::vector<int32_t> experts_LTK;
};

// All texts of a file. Errors as RouteReader (train/route_file.h); DataError for positions out of
// order too.
std::vector<RecordedRoutes> read_routes(const std::string& path, const ModelShape& shape);

// Makes the pass over `routes.tokens_T` (its rows, from the first on) take the recorded experts,
// which must outlive it; null: the router's own choice again.
void replay(Activations& activations, const RecordedRoutes* routes);

struct ReplayLoss {
  int64_t texts = 0;
  int64_t tokens = 0;        // predicted
  double loss = 0;           // nats per token, experts chosen anew
  double replayed_loss = 0;  // with the recorded experts
  int64_t recorded = 0;      // tokens with recorded experts
  int64_t rerouted = 0;      // of these, chosen otherwise anew in some layer
};
// The training forward (activations kept for backward) over every text, with and without the
// recorded experts. One rank.
ReplayLoss replay_loss(Context& context, const ComparedModel& model,
                       const std::vector<RecordedRoutes>& texts);

}  // namespace degu
