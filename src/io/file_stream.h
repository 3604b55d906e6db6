// A file whose next bytes are fetched while its reader works on those before them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace degu {

// Threads fetch blocks of the file, from where the reader last began onwards, into a ring of memory
// (at most 32 MiB, less for small files). What the system holds in its cache comes from there; all
// else is read past the cache where the file system allows it, for a large file would otherwise be
// copied once more and push everything else out.
class FileStream {
 public:
  // `shared`: other processes read the file about now, so all of it goes by way of the cache, for
  // the disk to give it once. IoError when the file cannot be opened.
  explicit FileStream(const std::string& path, bool shared = false);
  ~FileStream();
  FileStream(const FileStream&) = delete;
  FileStream& operator=(const FileStream&) = delete;

  // to = the file's bytes from `begin` on. Reading onwards is the fast way; a large piece from
  // elsewhere costs what was fetched ahead. IoError when the system refuses, DataError when the
  // file ends before.
  void read(int64_t begin, std::span<std::byte> to);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace degu
