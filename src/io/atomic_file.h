// Files that are either whole or absent: written under a temporary name beside the target, flushed
// to the disk, then renamed over it. A crash leaves the old file and at most a "*.partial" one,
// which the next attempt overwrites.
#pragma once

#include <string>
#include <string_view>

namespace degu {

// One target, one temporary. Write to `temporary()`, close it, `commit()`. Without a commit the
// destructor removes the temporary. Errors are IoErrors with the path and the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);  // creates missing parent folders
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  const std::string& path() const { return path_; }
  const std::string& temporary() const { return temporary_; }
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  bool committed_ = false;
};

// The whole of a small file in one call.
void write_file_atomic(const std::string& path, std::string_view content);
std::string read_file(const std::string& path);

// The pieces, for folders of files that are renamed as one.
void sync_path(const std::string& path);  // fsync of a file or folder
void rename_durably(const std::string& from,
                    const std::string& to);  // rename, then fsync of the parent

}  // namespace degu
