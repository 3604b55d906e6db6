// What this build found of third_party/README.md: the list that the configure step prints.
#pragma once

#include <span>
#include <string_view>

namespace degu {

struct Dependency {
  std::string_view name;
  std::string_view version;  // empty unless found
  std::string_view licence;
  std::string_view state;  // found, missing or not used
  std::string_view note;   // what is left out, or why it is not used
};

std::span<const Dependency> dependencies();

}  // namespace degu
