#include "io/crc32.h"

#include <libdeflate.h>

namespace degu {

uint32_t crc32(const void* data, size_t bytes, uint32_t state) {
  // The library takes a null pointer as a request for the initial value.
  if (bytes == 0) return state;
  return libdeflate_crc32(state, data, bytes);
}

}  // namespace degu
