// A sweep's training curves as a run table, for approach 1: the envelope needs losses at every
// compute, not at the runs' ends alone.
#pragma once

#include <string>

#include "scaling/run_table.h"

namespace degu::scaling {

enum class CurveKind { kTraining, kValidation };

// One row per point of each finished run's runs/<run>/metrics.jsonl under a sweep's `folder`: the
// columns of its runs.csv with tokens, flops and val_loss of the point, and annealed 0 but for the
// end of an annealed run.
//
// Validation losses (train.evaluate_every) are taken as they are. Training losses are smoothed by a
// straight line through ln loss over ln tokens within a factor e^.4 (tricube weights), read at 20
// points per decade of tokens, from the tenth logged step on.
//
// IoError or DataError when the folder has no table, a run no metrics, or, asked for validation
// curves, no two validations.
RunTable read_curves(const std::string& folder, CurveKind kind);

}  // namespace degu::scaling
