#include "io/crc32.h"

#include <zlib.h>

namespace degu {

uint32_t crc32(const void* data, size_t bytes, uint32_t state) {
  // zlib takes a null pointer as a request for the initial value.
  if (bytes == 0) return state;
  return static_cast<uint32_t>(::crc32_z(state, static_cast<const Bytef*>(data), bytes));
}

}  // namespace degu
