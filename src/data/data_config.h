// The `data:` part of a run's YAML: which prepared text a model sees, in which proportions and
// order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/fields.h"

namespace degu {

// One domain of a mixture.
struct MixturePart {
  std::string name;     // as `degu data prepare` called it
  double weight = 1.0;  // share of the sequences, relative to the other parts

  void fields(Fields& f) {
    f("name", name, "domain, as `degu data info` lists it");
    f("weight", weight, "share of the sequences, relative to the other parts; 0: validation only");
  }
};

struct DataConfig {
  std::vector<std::string> paths;    // folders made by `degu data prepare` with one tokenizer
  std::vector<MixturePart> mixture;  // empty: every domain, in proportion to its training tokens
  int64_t sequence_length = 128;     // S, tokens of one packed sequence
  bool confine_documents = true;
  int64_t seed = 1;
  int64_t validation_tokens = 65536;  // per domain; 0: all

  void fields(Fields& f) {
    f("paths", paths, "folders made by `degu data prepare`, all with the same tokenizer");
    f("mixture", mixture,
      "domains and weights; empty: all, in proportion to their training tokens");
    f("sequence_length", sequence_length, "tokens of one packed training sequence");
    f("confine_documents", confine_documents,
      "attention, positions and targets stay within one document of a packed sequence");
    f("seed", seed, "order in which sequences are visited");
    f("validation_tokens", validation_tokens,
      "validation tokens per domain, spread over its split; 0: all");
  }
  void check() const;  // ConfigError
};

}  // namespace degu
