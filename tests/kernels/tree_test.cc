// The tree of partial sums: its shape for every count, and the stack that skips absent leaves.
#include "kernels/common/tree.h"

#include <string>
#include <vector>

#include "tests/support/kernel_testing.h"

namespace degu {
namespace {

// Level by level on a list of names: "((01)(23))4".
std::string by_levels(std::vector<std::string> nodes) {
  if (nodes.empty()) return "";
  while (nodes.size() > 1) {
    std::vector<std::string> above;
    for (size_t i = 0; i < nodes.size(); i += 2) {
      if (i + 1 == nodes.size()) {
        above.push_back(nodes[i]);
      } else if (nodes[i].empty() || nodes[i + 1].empty()) {
        above.push_back(nodes[i] + nodes[i + 1]);  // an absent side is neutral
      } else {
        above.push_back("(" + nodes[i] + "+" + nodes[i + 1] + ")");
      }
    }
    nodes = above;
  }
  return nodes[0];
}

TEST_CASE("tree_join joins pairs level by level and carries an odd last one up", "[tree]") {
  for (int64_t leaves = 0; leaves <= 40; ++leaves) {
    std::vector<std::string> names;
    for (int64_t i = 0; i < leaves; ++i) names.push_back(std::to_string(i));
    std::vector<std::string> buffer(static_cast<size_t>(tree_depth(leaves)) + 1);
    int most = 0;
    tree_join(
        leaves,
        [&](int64_t i, int b) {
          most = std::max(most, b + 1);
          buffer.at(static_cast<size_t>(b)) = names[static_cast<size_t>(i)];
        },
        [&](int into, int from) {
          buffer.at(static_cast<size_t>(into)) = "(" + buffer.at(static_cast<size_t>(into)) + "+" +
                                                 buffer.at(static_cast<size_t>(from)) + ")";
        });
    CHECK(buffer[0] == by_levels(names));
    CHECK(most <= tree_depth(leaves));
  }
}

TEST_CASE("TreeStack gives the same tree with absent leaves left out", "[tree]") {
  for (uint64_t present = 0; present < 1u << 11; ++present) {
    std::vector<std::string> names;
    for (int i = 0; i < 11; ++i) names.push_back(present >> i & 1 ? std::to_string(i) : "");
    std::vector<std::string> buffer(8);
    const auto join = [&](int into, int from) {
      buffer.at(static_cast<size_t>(into)) = "(" + buffer.at(static_cast<size_t>(into)) + "+" +
                                             buffer.at(static_cast<size_t>(from)) + ")";
    };
    TreeStack stack;
    for (int i = 0; i < 11; ++i) {
      if (present >> i & 1) {
        buffer.at(static_cast<size_t>(stack.push(i, join))) = names[static_cast<size_t>(i)];
      }
    }
    stack.finish(join);
    if (buffer[0] != by_levels(names)) FAIL(buffer[0] << " is not " << by_levels(names));
  }
}

}  // namespace
}  // namespace degu
