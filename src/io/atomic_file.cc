#include "io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/error.h"

namespace degu {
namespace {

std::string parent_of(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) throw IoError("{}: cannot open: {}", path, std::strerror(errno));
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(fd_); }
  int fd() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

void sync_path(const std::string& path) {
  const Descriptor file(path, O_RDONLY);
  // Some file systems cannot sync a folder (EINVAL); there is nothing more to do then.
  if (::fsync(file.fd()) != 0 && errno != EINVAL) {
    throw IoError("{}: cannot flush to disk: {}", path, std::strerror(errno));
  }
}

void rename_durably(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    throw IoError("{}: cannot rename to '{}': {}", from, to, std::strerror(errno));
  }
  sync_path(parent_of(to));
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), temporary_(path_ + ".partial") {
  std::error_code error;
  std::filesystem::create_directories(parent_of(path_), error);
  if (error) throw IoError("{}: cannot create folder: {}", parent_of(path_), error.message());
}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::commit() {
  sync_path(temporary_);
  rename_durably(temporary_, path_);
  committed_ = true;
}

void write_file_atomic(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  {
    const Descriptor out(file.temporary(), O_WRONLY | O_CREAT | O_TRUNC);
    while (!content.empty()) {
      const ssize_t written = ::write(out.fd(), content.data(), content.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw IoError("{}: cannot write: {}", path, std::strerror(errno));
      content.remove_prefix(static_cast<size_t>(written));
    }
  }
  file.commit();
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw IoError("{}: cannot open: {}", path, std::strerror(errno));
  std::ostringstream content;
  content << in.rdbuf();
  if (in.bad()) throw IoError("{}: cannot read: {}", path, std::strerror(errno));
  return std::move(content).str();
}

}  // namespace degu
