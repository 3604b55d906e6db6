#include "scaling/laws/registry.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace degu::scaling {

std::span<const LawFactory> law_table() {
  static constexpr std::array<LawFactory, 9> kTable = {
      make_chinchilla,  make_clark,        make_clark_unsaturated,
      make_krajewski,   make_ludziejewski, make_abnar,
      make_muennighoff, make_kumar,        make_multipliers,
  };
  return kTable;
}

std::unique_ptr<Law> make_law(std::string_view name) {
  std::string known;
  for (const LawFactory make : law_table()) {
    std::unique_ptr<Law> law = make();
    if (law->name() == name) return law;
    known += (known.empty() ? "" : ", ") + std::string(law->name());
  }
  throw ConfigError("--law {}: no such law; known: {}", name, known);
}

}  // namespace degu::scaling
