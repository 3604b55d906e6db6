#include "io/reserve.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace degu {
namespace {

class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : fd_(::open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (fd_ < 0) throw IoError("{}: cannot open: {}", path, std::strerror(errno));
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void refuse(const std::string& path, int64_t bytes, int error) {
  throw IoError("{}: cannot grow to {} bytes: {}", path, bytes, std::strerror(error));
}

}  // namespace

void reserve_disk(const std::string& path, int64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      static_cast<rlim_t>(bytes) > limit.rlim_cur) {
    refuse(path, bytes, EFBIG);
  }
  const Descriptor file(path);
  int status = 0;
  do {
    status = ::fallocate(file.fd(), FALLOC_FL_KEEP_SIZE, 0, bytes);
  } while (status != 0 && errno == EINTR);
  if (status == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) refuse(path, bytes, errno);
  struct stat present {};
  struct statvfs system {};
  if (::fstat(file.fd(), &present) != 0 || ::fstatvfs(file.fd(), &system) != 0) return;
  const auto held = static_cast<uint64_t>(present.st_blocks) * 512;
  const uint64_t room = uint64_t{system.f_bavail} * system.f_frsize;
  if (std::cmp_greater(bytes, held + room)) refuse(path, bytes, ENOSPC);
}

void release_reserve(const std::string& path) {
  const Descriptor file(path);
  struct stat present {};
  if (::fstat(file.fd(), &present) != 0 || ::ftruncate(file.fd(), present.st_size) != 0) {
    throw IoError("{}: cannot trim: {}", path, std::strerror(errno));
  }
}

}  // namespace degu
