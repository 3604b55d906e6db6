// Which tensors become codes, and in which scheme.
//
// Always as they are: routers (multiplied in fp32: an expert chosen otherwise is another model),
// their biases, and norms. Embedding and head take 8-bit codes where 4-bit ones were asked for:
// they are where rounding costs most (experiments/quantization). All else takes the scheme that was
// asked for. A rule goes before all of this but the first.
#pragma once

#include <map>
#include <regex>
#include <string>
#include <vector>

#include "model/parameters.h"

namespace degu {

// A tensor whose name the pattern matches in part takes `scheme` instead; the first rule wins.
struct KeepRule {
  std::string pattern;  // ECMAScript regular expression
  Scheme scheme = Scheme::kBf16;

  // "PATTERN" (bf16) or "PATTERN=SCHEME". ConfigError when either is not understood.
  static KeepRule parse(const std::string& text);
};

// What embedding and head are held in when `scheme` is asked for.
Scheme table_scheme(Scheme scheme);

struct QuantizationPolicy {
  Scheme scheme = Scheme::kW8A8;
  std::vector<KeepRule> keep;

  // By tensor name, all that may be quantized. ConfigError for a rule that matches no such tensor.
  std::map<std::string, Scheme> plan(const std::vector<ParameterSpec>& specs) const;
};

}  // namespace degu
