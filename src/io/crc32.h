// CRC-32 (ISO 3309, as in gzip and PNG): detects altered bytes; no protection against intent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace degu {

// `state` is the checksum of what came before: crc32(b, n, crc32(a, m)) is that of a followed by b.
uint32_t crc32(const void* data, size_t bytes, uint32_t state = 0);
inline uint32_t crc32(std::string_view bytes, uint32_t state = 0) {
  return crc32(bytes.data(), bytes.size(), state);
}

}  // namespace degu
