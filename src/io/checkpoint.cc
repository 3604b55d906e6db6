#include "io/checkpoint.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "base/log.h"
#include "comm/agree.h"
#include "io/atomic_file.h"
#include "io/checkpoint_manifest.h"
#include "io/crc32.h"
#include "io/hdf5.h"
#include "io/reserve.h"

namespace degu {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Manifest = CheckpointManifest;

// What HDF5 needs at most beside the data: for a file, and for a dataset with its attributes and
// the groups on the way to it. Measured: 0.4 KiB per dataset, 5.8 KiB where a name runs through 95
// groups.
constexpr int64_t kFileOverhead = 64 << 10;
constexpr int64_t kDatasetOverhead = 8 << 10;

constexpr const char* kManifestName = "manifest.json";
constexpr std::string_view kPartialSuffix = ".partial";    // being written
constexpr std::string_view kRemovedSuffix = ".removed";    // being removed
constexpr std::string_view kReplacedSuffix = ".replaced";  // giving way to a new one of its name
constexpr std::string_view kStepPrefix = "step-";

h5::Shape to_h5(const Shape& shape) {
  h5::Shape out;
  for (int i = 0; i < shape.rank(); ++i) out.push_back(shape[i]);
  return out;
}

void require(std::error_code error, const std::string& path, const char* what) {
  if (error) throw IoError("{}: cannot {}: {}", path, what, error.message());
}

void make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  require(error, path, "create folder");
}

void remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  require(error, path, "remove");
}

// `from` takes the place of `to` in one step, also when `to` exists.
void replace_folder(const std::string& from, const std::string& to) {
  std::error_code error;
  if (!fs::exists(to, error)) return rename_durably(from, to);
  if (::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) ==
      0) {
    sync_path(fs::path(to).parent_path().empty() ? "." : fs::path(to).parent_path().string());
    return remove_folder(from);
  }
  // A file system that cannot exchange: for a moment neither stands under the name, both are on the
  // disk.
  const std::string aside = to + std::string(kReplacedSuffix);
  remove_folder(aside);
  rename_durably(to, aside);
  rename_durably(from, to);
  remove_folder(aside);
}

std::string rank_file(int rank) {
  return fmt::format("rank-{:05d}.h5", rank);
}

}  // namespace

// ---- writing ----

struct CheckpointWriter::Impl {
  Communicator& comm;
  std::string folder;
  std::string partial = {};
  Json metadata;
  std::optional<h5::File> file = {};
  int64_t reserved = kFileOverhead;  // bytes the file may grow to
  Json tensors = Json::object();     // this rank's: name → {dtype, shape, parts}
  Json attached = Json::array();
  std::string failure = {};                  // the first thing that went wrong with a file here
  std::optional<std::string> finished = {};  // close()'s report, once nothing is added any more
  bool committed = false;

  std::string path(const std::string& name) const { return partial + "/" + name; }
  void store(const std::string& name, const Region& region, AnyView part);
  void write_part(const std::string& name, const Region& region, AnyView part);
  std::string close();
  Manifest assemble(const std::vector<std::string>& reports) const;
};

CheckpointWriter::CheckpointWriter(Communicator& comm, std::string folder, const Json& metadata)
    : impl_(new Impl{.comm = comm, .folder = std::move(folder), .metadata = metadata}) {
  while (impl_->folder.size() > 1 && impl_->folder.back() == '/') impl_->folder.pop_back();
  impl_->partial = impl_->folder + std::string(kPartialSuffix);
  run_together(comm, [&] {
    if (comm.rank() != 0) return;
    remove_folder(impl_->partial);  // of a writer that was killed
    make_folder(impl_->partial);
  });
}

CheckpointWriter::~CheckpointWriter() {
  impl_->file.reset();
  if (impl_->committed || impl_->comm.rank() != 0) return;
  std::error_code ignored;  // what remains is removed when the next checkpoint is written
  fs::remove_all(impl_->partial, ignored);
}

void CheckpointWriter::add(const std::string& name, Shape whole, Shape offset, AnyView part) {
  impl_->store(name, Region::box(whole, offset, part.shape), part);
}

void CheckpointWriter::add_range(const std::string& name, Shape whole, int64_t begin,
                                 AnyView part) {
  impl_->store(name, Region::range(whole, begin, part.elements()), part);
}

void CheckpointWriter::add(const std::string& name, AnyView whole) {
  impl_->store(name, Region::all(whole.shape), whole);
}

void CheckpointWriter::add(const std::string& name, const Region& region, AnyView part) {
  impl_->store(name, region, part);
}

void CheckpointWriter::Impl::store(const std::string& name, const Region& region, AnyView part) {
  if (!valid_checkpoint_name(name)) throw ShapeError("checkpoint: '{}' is no tensor name", name);
  if (part.device != DeviceType::kCpu)
    throw ShapeError("checkpoint: '{}' is not in host memory", name);
  if (!region.inside())
    throw ShapeError("checkpoint: '{}': {} is not inside it", name, region.str());
  DEGU_DCHECK(!finished);
  if (!failure.empty()) return;
  try {
    write_part(name, region, part);
  } catch (const Error& error) {
    failure = error.what();
  }
}

void CheckpointWriter::Impl::write_part(const std::string& name, const Region& region,
                                        AnyView part) {
  Json& entry = tensors[name];
  if (entry.is_null()) {
    entry = {{"dtype", dtype_name(part.dtype)},
             {"shape", shape_to_json(region.whole)},
             {"parts", Json::array()}};
  }
  if (entry["dtype"] != dtype_name(part.dtype) || entry["shape"] != shape_to_json(region.whole)) {
    throw DataError("tensor '{}' was added with another type or shape before", name);
  }
  if (part.elements() == 0) return;
  const std::string file_path = path(rank_file(comm.rank()));
  if (!file) {
    file = h5::File::create(file_path, reserved);
  }
  reserved += static_cast<int64_t>(part.bytes()) + kDatasetOverhead;
  reserve_disk(file_path, reserved);
  const size_t index = entry["parts"].size();
  const std::string dataset = index == 0 ? name : fmt::format("{}@{}", name, index);
  const h5::ElementType type = h5::element_of(part.dtype);
  h5::Dataset out = file->create_dataset(dataset, type, to_h5(region.extent));
  out.write_box({}, {}, type, part.data, part.elements());
  // The manifest says the same; these let the file be read without it.
  out.set_attribute("dtype", dtype_name(part.dtype));
  out.set_attribute("whole_shape", to_h5(region.whole));
  out.set_attribute(region.flat ? "range_begin" : "offset", to_h5(region.offset));
  entry["parts"].push_back(part_to_json({.file = 0,
                                         .dataset = dataset,
                                         .region = region,
                                         .crc32 = crc32(part.data, part.bytes()),
                                         .file_offset = out.file_offset().value_or(-1)}));
}

void CheckpointWriter::attach(const std::string& name, std::string_view content) {
  if (!valid_checkpoint_name(name))
    throw ShapeError("checkpoint: '{}' is no attachment name", name);
  if (!impl_->failure.empty()) return;
  try {
    write_file_atomic(impl_->path("attachments/" + name), content);
    impl_->attached.push_back(
        {{"name", name}, {"bytes", content.size()}, {"crc32", crc32(content)}});
  } catch (const Error& error) {
    impl_->failure = error.what();
  }
}

// Closes and flushes this rank's file; returns what rank 0 needs to know of it.
std::string CheckpointWriter::Impl::close() {
  Json report = {{"tensors", tensors}, {"attachments", attached}, {"bytes", 0}};
  if (file) {
    file->close();
    file.reset();
    const std::string name = path(rank_file(comm.rank()));
    release_reserve(name);
    sync_path(name);
    report["bytes"] = static_cast<int64_t>(fs::file_size(name));
  }
  return report.dump();
}

Manifest CheckpointWriter::Impl::assemble(const std::vector<std::string>& reports) const {
  Manifest manifest;
  manifest.metadata = metadata;
  std::set<std::string> names;
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    const Json report = Json::parse(reports[rank]);
    const size_t file_index = manifest.files.size();
    const auto bytes = report["bytes"].get<int64_t>();
    if (bytes > 0) manifest.files.push_back({rank_file(static_cast<int>(rank)), bytes});
    for (const auto& [name, entry] : report["tensors"].items()) {
      const DType dtype = dtype_from_name(entry["dtype"].get<std::string>());
      const Shape shape = shape_from_json(entry["shape"]);
      const auto [at, fresh] = manifest.tensors.try_emplace(name);
      if (fresh) {
        at->second.dtype = dtype;
        at->second.shape = shape;
      } else if (at->second.dtype != dtype || at->second.shape != shape) {
        throw DataError("tensor '{}' is {} {} on rank {} and {} {} on a rank before it", name,
                        dtype_name(dtype), shape.str(), rank, dtype_name(at->second.dtype),
                        at->second.shape.str());
      }
      for (const Json& json : entry["parts"]) {
        Manifest::Part part = part_from_json(json, shape);
        part.file = file_index;
        at->second.parts.push_back(std::move(part));
      }
    }
    for (const Json& json : report["attachments"]) {
      const auto name = json["name"].get<std::string>();
      if (!names.insert(name).second) throw DataError("attachment '{}' was added twice", name);
      manifest.attachments.push_back(
          {name, json["bytes"].get<int64_t>(), json["crc32"].get<uint32_t>()});
    }
  }
  manifest.check_coverage();
  return manifest;
}

void CheckpointWriter::finish() {
  Impl& self = *impl_;
  if (self.finished || !self.failure.empty()) return;
  try {
    self.finished = self.close();
  } catch (const Error& error) {
    self.failure = error.what();
  }
}

void CheckpointWriter::commit() {
  Impl& self = *impl_;
  finish();
  run_together(self.comm, [&] {
    if (!self.failure.empty()) throw IoError("{}", self.failure);
  });
  const std::vector<std::string> reports = self.comm.gather_text(*self.finished);
  run_together(self.comm, [&] {
    if (self.comm.rank() != 0) return;
    const Manifest manifest = self.assemble(reports);
    write_file_atomic(self.path(kManifestName), manifest.text());
    for (const Manifest::Attachment& a : manifest.attachments) {
      for (fs::path at = fs::path(self.path("attachments/" + a.name)).parent_path();
           at.string().size() > self.partial.size(); at = at.parent_path()) {
        sync_path(at.string());
      }
    }
    sync_path(self.partial);
    replace_folder(self.partial, self.folder);
  });
  self.committed = true;
}

// ---- reading ----

struct CheckpointReader::Impl {
  std::string folder;
  Manifest manifest = {};
  std::vector<std::optional<h5::File>> files = {};
  // The part read last: tensors are often read in pieces smaller than they were written in.
  const Manifest::Part* cached = nullptr;
  std::vector<std::byte> cache = {};
  bool shared = false;

  const Manifest::TensorEntry& tensor(const std::string& name) const;
  void read(const std::string& name, const Region& wanted, AnyView out);
  void read_part(const Manifest::TensorEntry& entry, const Manifest::Part& part, std::byte* out);
};

CheckpointReader::CheckpointReader(std::string folder)
    : impl_(new Impl{.folder = std::move(folder)}) {
  Impl& self = *impl_;
  const std::string path = self.folder + "/" + kManifestName;
  std::error_code error;
  if (!fs::is_directory(self.folder, error))
    throw IoError("{}: no such checkpoint folder", self.folder);
  if (!fs::exists(path, error))
    throw DataError("{}: not a checkpoint: no {}", self.folder, kManifestName);
  self.manifest = Manifest::parse(read_file(path), path);
  self.files.resize(self.manifest.files.size());
  auto check_file = [&](const std::string& name, int64_t bytes) {
    const std::string file = self.folder + "/" + name;
    const auto size = fs::file_size(file, error);
    if (error)
      throw DataError("{}: missing ({}); the checkpoint is damaged", file, error.message());
    if (static_cast<int64_t>(size) != bytes) {
      throw DataError("{}: {} bytes where the manifest says {}: truncated or altered", file, size,
                      bytes);
    }
  };
  for (const Manifest::File& file : self.manifest.files) check_file(file.name, file.bytes);
  for (const Manifest::Attachment& a : self.manifest.attachments)
    check_file("attachments/" + a.name, a.bytes);
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

const std::string& CheckpointReader::folder() const {
  return impl_->folder;
}
const Manifest& CheckpointReader::manifest() const {
  return impl_->manifest;
}
void CheckpointReader::share(bool shared) {
  impl_->shared = shared;
}
bool CheckpointReader::shared() const {
  return impl_->shared;
}
const Json& CheckpointReader::metadata() const {
  return impl_->manifest.metadata;
}
bool CheckpointReader::has(const std::string& name) const {
  return impl_->manifest.tensors.count(name) > 0;
}

std::vector<CheckpointReader::TensorInfo> CheckpointReader::list() const {
  std::vector<TensorInfo> out;
  for (const auto& [name, tensor] : impl_->manifest.tensors)
    out.push_back({name, tensor.dtype, tensor.shape});
  return out;
}

CheckpointReader::TensorInfo CheckpointReader::info(const std::string& name) const {
  const Manifest::TensorEntry& tensor = impl_->tensor(name);
  return {name, tensor.dtype, tensor.shape};
}

void CheckpointReader::read(const std::string& name, Shape offset, AnyView out) {
  impl_->read(name, Region::box(info(name).shape, offset, out.shape), out);
}

void CheckpointReader::read_range(const std::string& name, int64_t begin, AnyView out) {
  impl_->read(name, Region::range(info(name).shape, begin, out.elements()), out);
}

void CheckpointReader::read(const std::string& name, AnyView out) {
  const Shape shape = info(name).shape;
  if (shape != out.shape) {
    throw DataError("{}: tensor '{}' has shape {}, not {}", folder(), name, shape.str(),
                    out.shape.str());
  }
  impl_->read(name, Region::all(shape), out);
}

const Manifest::TensorEntry& CheckpointReader::Impl::tensor(const std::string& name) const {
  const auto at = manifest.tensors.find(name);
  if (at == manifest.tensors.end()) throw DataError("{}: holds no tensor '{}'", folder, name);
  return at->second;
}

void CheckpointReader::Impl::read(const std::string& name, const Region& wanted, AnyView out) {
  const Manifest::TensorEntry& entry = tensor(name);
  if (entry.dtype != out.dtype) {
    throw DataError("{}: tensor '{}' is {}, not {}", folder, name, dtype_name(entry.dtype),
                    dtype_name(out.dtype));
  }
  if (!wanted.inside()) throw DataError("{}: tensor '{}' has no {}", folder, name, wanted.str());
  auto* target = static_cast<std::byte*>(out.data);
  const std::vector<Run> want = runs_of(wanted);
  if (want.empty()) return;
  for (const Manifest::Part& part : entry.parts) {
    const std::vector<Run> have = runs_of(part.region);
    if (have.front().whole_begin >= want.back().whole_begin + want.back().count ||
        want.front().whole_begin >= have.back().whole_begin + have.back().count) {
      continue;  // nothing in common
    }
    const bool same = have.size() == 1 && want.size() == 1 &&
                      have[0].whole_begin == want[0].whole_begin && have[0].count == want[0].count;
    if (same) return read_part(entry, part, target);
    if (cached != &part) {
      cached = nullptr;
      cache.resize(static_cast<size_t>(part.region.elements()) * size_of(entry.dtype));
      read_part(entry, part, cache.data());
      cached = &part;
    }
    copy_common(part.region, cache.data(), wanted, target, size_of(entry.dtype));
  }
}

void CheckpointReader::Impl::read_part(const Manifest::TensorEntry& entry,
                                       const Manifest::Part& part, std::byte* out) {
  const std::string path = folder + "/" + manifest.files[part.file].name;
  std::optional<h5::File>& file = files[part.file];
  if (!file) file = h5::File::open(path);
  const h5::Dataset dataset = file->dataset(part.dataset);
  if (dataset.shape() != to_h5(part.region.extent)) {
    throw DataError("{}: '{}' has another shape than the manifest says", path, part.dataset);
  }
  const size_t bytes = static_cast<size_t>(part.region.elements()) * size_of(entry.dtype);
  dataset.read_box({}, {}, h5::element_of(entry.dtype), out, part.region.elements());
  part.compare(crc32(out, bytes), path);
}

std::vector<std::string> CheckpointReader::attachments() const {
  std::vector<std::string> out;
  for (const Manifest::Attachment& a : impl_->manifest.attachments) out.push_back(a.name);
  return out;
}

std::string CheckpointReader::attachment(const std::string& name) const {
  for (const Manifest::Attachment& a : impl_->manifest.attachments) {
    if (a.name != name) continue;
    const std::string path = folder() + "/attachments/" + name;
    std::string content = read_file(path);
    if (crc32(content) != a.crc32) throw DataError("{}: altered: its checksum differs", path);
    return content;
  }
  throw DataError("{}: holds no attachment '{}'", folder(), name);
}

void CheckpointReader::verify() {
  std::vector<std::byte> buffer;
  for (const auto& [name, entry] : impl_->manifest.tensors) {
    for (const Manifest::Part& part : entry.parts) {
      buffer.resize(static_cast<size_t>(part.region.elements()) * size_of(entry.dtype));
      impl_->read_part(entry, part, buffer.data());
    }
  }
  for (const std::string& name : attachments()) attachment(name);
}

// ---- folders of checkpoints ----

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08d}", kStepPrefix, step);
}

std::vector<CheckpointPlace> list_checkpoints(const std::string& parent) {
  std::vector<CheckpointPlace> found;
  std::error_code error;
  fs::directory_iterator entries(parent, error);
  if (error == std::errc::no_such_file_or_directory) return {};
  require(error, parent, "list");
  for (const fs::directory_entry& entry : entries) {
    const std::string name = entry.path().filename().string();
    const std::string digits = name.substr(std::min(name.size(), kStepPrefix.size()));
    if (!name.starts_with(kStepPrefix) || digits.empty() || digits.size() > 18 ||
        !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      continue;
    }
    try {
      const CheckpointReader whole(entry.path().string());
      found.push_back({entry.path().string(), std::stoll(digits)});
    } catch (const Error& failure) {
      log_warn("checkpoint passed over: {}", failure.what());
    }
  }
  std::sort(found.begin(), found.end(),
            [](const CheckpointPlace& a, const CheckpointPlace& b) { return a.step < b.step; });
  return found;
}

std::string find_latest(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + "/" + kManifestName, error)) return path;
  const std::vector<CheckpointPlace> found = list_checkpoints(path);
  return found.empty() ? "" : found.back().folder;
}

void prune_checkpoints(const std::string& parent, int keep) {
  if (keep < 1) throw ConfigError("checkpoints to keep: {}, must be at least 1", keep);
  const std::vector<CheckpointPlace> found = list_checkpoints(parent);
  for (size_t i = 0; i + static_cast<size_t>(keep) < found.size(); ++i) {
    // Under a name that nobody takes for a checkpoint while its files go one by one.
    const std::string doomed = found[i].folder + std::string(kRemovedSuffix);
    rename_durably(found[i].folder, doomed);
    remove_folder(doomed);
  }
  std::error_code error;
  std::vector<std::string> leftovers;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
    const std::string name = entry.path().filename().string();
    const std::string path = entry.path().string();
    // What was moved aside is all there is if its successor never came.
    const bool succeeded = name.ends_with(kReplacedSuffix) &&
                           fs::exists(path.substr(0, path.size() - kReplacedSuffix.size()), error);
    const bool stale =
        name.ends_with(kPartialSuffix) || name.ends_with(kRemovedSuffix) || succeeded;
    if (name.starts_with(kStepPrefix) && stale) leftovers.push_back(path);
  }
  for (const std::string& path : leftovers) remove_folder(path);
}

}  // namespace degu
