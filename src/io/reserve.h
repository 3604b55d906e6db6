// Room on the disk before it is needed. The HDF5 library (1.10) leaves broken objects behind when
// one of its own writes fails and crashes later on; whoever writes much through it reserves first,
// so that a full disk, a quota or a limit is met here, as an IoError.
#pragma once

#include <cstdint>
#include <string>

namespace degu {

// Makes sure that the existing file can grow to `bytes`; its size and content stay. IoError with
// the system's reason when it cannot. File systems that cannot set room aside are asked for their
// free space.
void reserve_disk(const std::string& path, int64_t bytes);

// Gives back what was reserved beyond the end of the file.
void release_reserve(const std::string& path);

}  // namespace degu
