// The laws by name. To add one: docs/add-a-law.md.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "scaling/laws/law.h"

namespace degu::scaling {

using LawFactory = std::unique_ptr<Law> (*)();

// One function per file of laws/.
std::unique_ptr<Law> make_chinchilla();
std::unique_ptr<Law> make_clark();
std::unique_ptr<Law> make_clark_unsaturated();  // clark.cc
std::unique_ptr<Law> make_krajewski();
std::unique_ptr<Law> make_ludziejewski();
std::unique_ptr<Law> make_abnar();
std::unique_ptr<Law> make_muennighoff();
std::unique_ptr<Law> make_kumar();
std::unique_ptr<Law> make_multipliers();

std::span<const LawFactory> law_table();

// ConfigError with the known names and the nearest one.
std::unique_ptr<Law> make_law(std::string_view name);

}  // namespace degu::scaling
