// Checkpoints: folders of tensors that any layout of ranks can write and any other can read.
//
//   step-00000200/
//     manifest.json             what is where, sizes and checksums
//     rank-00000.h5, …          one serial HDF5 file per rank that had something to write
//     attachments/config.yaml   small files: configuration, tokenizer
//
// Format: docs/formats/checkpoint.md. A checkpoint is written into "<folder>.partial", flushed to
// the disk file by file, then renamed: it is whole or absent. There are no collective file calls,
// so a rank with a full disk fails the checkpoint on all ranks and hangs none; the last good one
// remains.
//
// Names: weights of the model are stored under kModelPrefix, the optimizer's state under
// kOptimizerPrefix ("optimizer/adam_m/layers.0.attention.wq"), anything else under prefixes of its
// owner's.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "io/region.h"
#include "tensor/view.h"

namespace degu {

inline constexpr std::string_view kModelPrefix = "model/";
inline constexpr std::string_view kOptimizerPrefix = "optimizer/";

struct CheckpointManifest;

// Used by one thread at a time.
class CheckpointWriter {
 public:
  // `metadata` (step, counters, seeds; a JSON object, the same on all ranks) comes back from
  // CheckpointReader::metadata. Collective. IoError on all ranks when the folder cannot be made.
  CheckpointWriter(Communicator& comm, std::string folder, const nlohmann::json& metadata);
  ~CheckpointWriter();  // without commit: nothing remains
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Not collective: each rank adds what it holds, and the ranks' parts together must cover every
  // tensor exactly once. Data is written at once; `part` may change afterwards. What goes wrong
  // with the file is kept for `commit`, so that ranks stay in step; a part that does not fit its
  // tensor is a ShapeError.
  //
  // The box at `offset` of a tensor of shape `whole`; part.shape has whole's rank.
  void add(const std::string& name, Shape whole, Shape offset, AnyView part);
  // Elements [begin, begin + part.elements()) of the tensor read as one row-major line (ZeRO
  // shards).
  void add_range(const std::string& name, Shape whole, int64_t begin, AnyView part);
  // All of it.
  void add(const std::string& name, AnyView whole);
  // Any of these.
  void add(const std::string& name, const Region& region, AnyView part);
  // A small named file. Any rank may attach; a name may be used once.
  void attach(const std::string& name, std::string_view content);

  // Not collective: all that was added and attached is on the disk, and nothing is added any more;
  // errors are kept. Without it, commit begins with this.
  void finish();
  // Collective. On return the checkpoint stands under its name, replacing an older one of that
  // name. IoError or DataError, with the rank and its reason, on all ranks otherwise, and nothing
  // remains of it.
  void commit();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Reads on one rank, with no communication: every rank that needs something opens its own.
class CheckpointReader {
 public:
  struct TensorInfo {
    std::string name;
    DType dtype = DType::kF32;
    Shape shape;
  };

  // IoError when the folder cannot be read; DataError when it is not a checkpoint, a file is
  // missing or of another size than the manifest says.
  explicit CheckpointReader(std::string folder);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  const std::string& folder() const;
  const CheckpointManifest& manifest() const;  // io/checkpoint_manifest.h
  const nlohmann::json& metadata() const;
  std::vector<TensorInfo> list() const;  // by name
  bool has(const std::string& name) const;
  TensorInfo info(const std::string& name) const;  // DataError naming what is missing

  // Other ranks read the same files about now: streams of them (io/checkpoint_stream.h) then go by
  // way of the system's cache, so that the disk gives each byte once.
  void share(bool shared);
  bool shared() const;

  // Fills `out` with the box of out.shape at `offset`, the range from `begin`, or the whole tensor,
  // whatever parts it was written in. The type must be the stored one. Each part read is compared
  // with its checksum. DataError with file and tensor when something differs.
  void read(const std::string& name, Shape offset, AnyView out);
  void read_range(const std::string& name, int64_t begin, AnyView out);
  void read(const std::string& name, AnyView out);

  std::vector<std::string> attachments() const;
  std::string attachment(const std::string& name) const;

  // Reads everything and compares all checksums.
  void verify();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "step-00000200": checkpoints of a run lie in one folder under such names.
std::string checkpoint_name(int64_t step);

struct CheckpointPlace {
  std::string folder;
  int64_t step = 0;
};

// Whole checkpoints "step-…" in `parent`, ascending by step: manifest intact, files there and of
// the right size. Damaged ones are left out, each with a warning. Empty when `parent` does not
// exist.
std::vector<CheckpointPlace> list_checkpoints(const std::string& parent);

// The last of them; "" when there is none. `path` may itself be a checkpoint, which is then the
// answer.
std::string find_latest(const std::string& path);

// Removes all but the last `keep` (at least 1) and leftovers of writers that were killed. One rank
// calls it.
void prune_checkpoints(const std::string& parent, int keep);

}  // namespace degu
