// The tensors of a checkpoint in small pieces, one after the other, as a program takes them that
// loads a large model in little memory.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/checkpoint_manifest.h"
#include "io/file_stream.h"

namespace degu {

// What comes next in a file is fetched while the caller works on what it has. Fast are reads that
// go forward: within a tensor, and from one tensor to the next as they were written.
class CheckpointStream {
 public:
  // `reader` outlives the stream.
  explicit CheckpointStream(CheckpointReader& reader) : reader_(reader) {}

  // out = elements [begin, begin + out.elements()) of the tensor read as one row-major line; the
  // type is the stored one. DataError when it is not, and whenever a part that was read to its end
  // does not have its checksum: so rely on a piece only after `finish`.
  void read(const std::string& name, int64_t begin, AnyView out);
  // Reads what is left of the parts that were begun, and compares their checksums.
  void finish();

 private:
  using Part = CheckpointManifest::Part;
  struct Progress {
    int64_t size = 0;  // of the part, in bytes
    int64_t done = 0;  // of them, from the beginning
    uint32_t sum = 0;  // checksum of what is done
  };

  void read_piece(const Part& part, int64_t size, int64_t first, std::span<std::byte> to);
  void advance(const Part& part, Progress& progress, std::span<std::byte> to);
  void skip(const Part& part, Progress& progress, int64_t until);
  std::string path_of(const Part& part) const;

  CheckpointReader& reader_;
  std::map<size_t, FileStream> streams_;  // by file
  std::map<const Part*, Progress> begun_;
  std::vector<std::byte> skipped_;
};

}  // namespace degu
