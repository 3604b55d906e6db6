// A fit as a JSON object: what `degu fit --json` prints, and FIT.json, which adds the bootstrap's
// draws and what the planner needs. docs/laws.md lists the keys.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "scaling/fit/fit.h"

namespace degu::scaling {

nlohmann::ordered_json fit_to_json(const FitResult& fit, bool with_draws);
// DataError naming the file and the key when something is missing or of another type.
FitResult fit_from_json(const nlohmann::ordered_json& json, const std::string& file);

}  // namespace degu::scaling
