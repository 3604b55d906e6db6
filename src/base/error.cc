#include "base/error.h"

#include <cstdio>
#include <cstdlib>

namespace degu::internal {

void dcheck_failed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: internal check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace degu::internal
