#include "io/read_ahead.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace degu {

ReadAhead::ReadAhead(const std::string& path, int64_t window)
    : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), window_(window) {}

ReadAhead::~ReadAhead() {
  if (fd_ >= 0) ::close(fd_);
}

ReadAhead::ReadAhead(ReadAhead&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), window_(other.window_), asked_(other.asked_) {}

void ReadAhead::reach(int64_t begin, int64_t end) {
  if (fd_ < 0) return;
  asked_ = std::max(asked_, begin);
  // In pieces: advice for a long range may wait for all of its requests to be queued.
  constexpr int64_t kPiece = int64_t{16} << 20;
  for (; asked_ < end + window_; asked_ += kPiece) {
    ::posix_fadvise(fd_, asked_, kPiece, POSIX_FADV_WILLNEED);
  }
}

}  // namespace degu
