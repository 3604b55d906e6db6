#include "io/hdf5.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "io/hdf5_native.h"
#include "io/reserve.h"

namespace degu::h5 {

bool Handle::close() noexcept {
  if (id_ < 0) return true;
  const hid_t id = std::exchange(id_, -1);
  herr_t status = 0;
  switch (std::exchange(kind_, Kind::kNone)) {
    case Kind::kFile:
      status = H5Fclose(id);
      break;
    case Kind::kGroup:
      status = H5Gclose(id);
      break;
    case Kind::kDataset:
      status = H5Dclose(id);
      break;
    case Kind::kSpace:
      status = H5Sclose(id);
      break;
    case Kind::kType:
      status = H5Tclose(id);
      break;
    case Kind::kAttribute:
      status = H5Aclose(id);
      break;
    case Kind::kList:
      status = H5Pclose(id);
      break;
    case Kind::kNone:
      break;
  }
  return status >= 0;
}

size_t size_of(ElementType type) {
  constexpr size_t sizes[] = {1, 1, 2, 2, 4, 4, 8, 8, 4, 8};
  return sizes[static_cast<size_t>(type)];
}

std::string_view element_name(ElementType type) {
  constexpr std::string_view names[] = {"int8",   "uint8", "int16",  "uint16",  "int32",
                                        "uint32", "int64", "uint64", "float32", "float64"};
  return names[static_cast<size_t>(type)];
}

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (int64_t n : shape) count *= n;
  return count;
}

// ---- datasets ----

Shape Dataset::shape() const {
  const Handle space(H5Dget_space(handle_.id()), Handle::Kind::kSpace);
  return shape_of_space(space.id());
}

int64_t Dataset::rows() const {
  const Shape extent = shape();
  return extent.empty() ? 1 : extent[0];
}

int64_t Dataset::row_size() const {
  const Shape extent = shape();
  return extent.empty() ? 1 : element_count(Shape(extent.begin() + 1, extent.end()));
}

std::optional<int64_t> Dataset::file_offset() const {
  silence();
  const Handle list(H5Dget_create_plist(handle_.id()), Handle::Kind::kList);
  if (H5Pget_layout(list.id()) != H5D_CONTIGUOUS) return std::nullopt;
  const haddr_t offset = H5Dget_offset(handle_.id());
  if (offset == HADDR_UNDEF) return std::nullopt;
  return static_cast<int64_t>(offset);
}

ElementType Dataset::element_type() const {
  silence();
  const Handle type(H5Dget_type(handle_.id()), Handle::Kind::kType);
  const int index = classify(type.id());
  if (index < 0) throw DataError("{}: elements are not plain numbers", place());
  return static_cast<ElementType>(index);
}

void Dataset::expect(ElementType type) const {
  const ElementType stored = element_type();
  if (stored != type) {
    throw DataError("{}: holds {}, expected {}", place(), element_name(stored), element_name(type));
  }
}

std::pair<Shape, Shape> Dataset::box_of_rows(int64_t first, int64_t elements) const {
  const int64_t width = row_size();
  Shape count = shape();
  if (count.empty() || width == 0 || elements % width != 0) {
    throw DataError("{}: {} elements are not whole rows of a dataset of shape {}", place(),
                    elements, shape_text(count));
  }
  Shape start(count.size(), 0);
  start[0] = first;
  count[0] = elements / width;
  return {start, count};
}

Handle Dataset::select(const Shape& start, const Shape& count, int64_t elements,
                       Handle& memory) const {
  silence();
  Handle space(H5Dget_space(handle_.id()), Handle::Kind::kSpace);
  const Shape extent = shape_of_space(space.id());
  const Shape& box = count.empty() ? extent : count;
  bool inside = start.size() == count.size() && box.size() == extent.size();
  for (size_t i = 0; inside && i < count.size(); ++i) {
    inside = start[i] >= 0 && count[i] >= 0 && start[i] <= extent[i] - count[i];
  }
  if (!inside) {
    throw DataError("{}: box at {} of size {} lies outside the shape {}", place(),
                    shape_text(start), shape_text(count), shape_text(extent));
  }
  if (element_count(box) != elements) {
    throw DataError("{}: buffer of {} elements for a box of size {}", place(), elements,
                    shape_text(box));
  }
  if (!count.empty() && elements > 0) {
    const auto from = to_hsize(start);
    const auto size = to_hsize(count);
    H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, from.data(), nullptr, size.data(), nullptr);
  }
  memory = box.empty() ? make_space({}) : make_space({elements});
  return space;
}

void Dataset::read_box(const Shape& start, const Shape& count, ElementType type, void* data,
                       int64_t elements) const {
  expect(type);
  Handle memory;
  const Handle space = select(start, count, elements, memory);
  if (elements == 0) return;
  if (H5Dread(handle_.id(), memory_type(type), memory.id(), space.id(), H5P_DEFAULT, data) < 0) {
    fail_read(place(), "read");
  }
}

void Dataset::write_box(const Shape& start, const Shape& count, ElementType type, const void* data,
                        int64_t elements) {
  expect(type);
  Handle memory;
  const Handle space = select(start, count, elements, memory);
  if (elements == 0) return;
  if (H5Dwrite(handle_.id(), memory_type(type), memory.id(), space.id(), H5P_DEFAULT, data) < 0) {
    fail_write(place(), "write");
  }
}

void Dataset::append_rows(ElementType type, const void* data, int64_t elements) {
  const auto [start_of_none, count] = box_of_rows(0, elements);
  if (elements == 0) return;
  Shape extent = shape();
  Shape start(extent.size(), 0);
  start[0] = extent[0];
  extent[0] += count[0];
  silence();
  const auto dims = to_hsize(extent);
  if (H5Dset_extent(handle_.id(), dims.data()) < 0) fail_write(place(), "grow");
  write_box(start, count, type, data, elements);
}

// ---- groups ----

bool Group::has(const std::string& path) const {
  silence();
  if (path.empty() || path == "/") return true;
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string prefix = path.substr(0, end);
    if (H5Lexists(handle_.id(), prefix.c_str(), H5P_DEFAULT) <= 0) return false;
    if (end == std::string::npos) return true;
  }
}

std::vector<std::string> Group::names() const {
  silence();
  std::vector<std::string> out;
  H5Literate(
      handle_.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr,
      [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
        static_cast<std::vector<std::string>*>(data)->emplace_back(name);
        return 0;
      },
      &out);
  std::sort(out.begin(), out.end());
  return out;
}

bool Group::is_dataset(const std::string& name) const {
  if (!has(name)) return false;
  H5O_info_t info;
  if (H5Oget_info_by_name2(handle_.id(), name.c_str(), &info, H5O_INFO_BASIC, H5P_DEFAULT) < 0) {
    fail_read(place(name), "inspect");
  }
  return info.type == H5O_TYPE_DATASET;
}

Group Group::create_group(const std::string& path) {
  silence();
  make_parents(handle_.id(), path);
  const Handle list = object_list(H5P_GROUP_CREATE);
  Handle group(H5Gcreate2(handle_.id(), path.c_str(), H5P_DEFAULT, list.id(), H5P_DEFAULT),
               Handle::Kind::kGroup);
  if (!group) fail_write(place(path), "create group");
  return Group(file_, child_name(name_, path), std::move(group));
}

Group Group::require_group(const std::string& path) {
  return has(path) ? group(path) : create_group(path);
}

Group Group::group(const std::string& path) const {
  if (!has(path)) throw DataError("{}: group is missing", place(path));
  Handle handle(H5Gopen2(handle_.id(), path.c_str(), H5P_DEFAULT), Handle::Kind::kGroup);
  if (!handle) fail_read(place(path), "open group");
  return Group(file_, child_name(name_, path), std::move(handle));
}

Dataset Group::create_dataset(const std::string& path, ElementType type, const Shape& shape,
                              const Layout& layout) {
  silence();
  const Handle space = make_space(shape, layout.growable);
  make_parents(handle_.id(), path);
  const Handle list = object_list(H5P_DATASET_CREATE);
  if (!layout.chunk.empty()) {
    if (layout.chunk.size() != shape.size()) {
      throw IoError("{}: chunk {} does not match shape {}", place(path), shape_text(layout.chunk),
                    shape_text(shape));
    }
    const auto chunk = to_hsize(layout.chunk);
    H5Pset_chunk(list.id(), static_cast<int>(chunk.size()), chunk.data());
    if (layout.shuffle) H5Pset_shuffle(list.id());
    if (layout.deflate > 0) H5Pset_deflate(list.id(), static_cast<unsigned>(layout.deflate));
    if (layout.checksum) H5Pset_fletcher32(list.id());
  } else if (layout.deflate > 0 || layout.shuffle || layout.checksum || layout.growable) {
    throw IoError("{}: compression, checksums and growth need a chunk size", place(path));
  }
  Handle handle(H5Dcreate2(handle_.id(), path.c_str(), file_type(type), space.id(), H5P_DEFAULT,
                           list.id(), H5P_DEFAULT),
                Handle::Kind::kDataset);
  if (!handle) fail_write(place(path), "create dataset");
  return Dataset(file_, child_name(name_, path), std::move(handle));
}

Dataset Group::dataset(const std::string& path) const {
  if (!has(path)) throw DataError("{}: dataset is missing", place(path));
  Handle handle(H5Dopen2(handle_.id(), path.c_str(), H5P_DEFAULT), Handle::Kind::kDataset);
  if (!handle) fail_read(place(path), "open dataset");
  return Dataset(file_, child_name(name_, path), std::move(handle));
}

void Group::write_strings(const std::string& path, const std::vector<std::string>& values) {
  silence();
  size_t longest = 0;
  for (const std::string& value : values) longest = std::max(longest, value.size());
  const Handle type = text_type(longest);
  const Handle space = make_space({static_cast<int64_t>(values.size())});
  make_parents(handle_.id(), path);
  const Handle list = object_list(H5P_DATASET_CREATE);
  const Handle handle(H5Dcreate2(handle_.id(), path.c_str(), type.id(), space.id(), H5P_DEFAULT,
                                 list.id(), H5P_DEFAULT),
                      Handle::Kind::kDataset);
  if (!handle) fail_write(place(path), "create dataset");
  const size_t width = H5Tget_size(type.id());
  std::string padded(values.size() * width, '\0');
  for (size_t i = 0; i < values.size(); ++i) values[i].copy(&padded[i * width], width);
  if (!values.empty() &&
      H5Dwrite(handle.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()) < 0) {
    fail_write(place(path), "write");
  }
}

std::vector<std::string> Group::read_strings(const std::string& path) const {
  const Dataset stored = dataset(path);
  const Handle type(H5Dget_type(stored.id()), Handle::Kind::kType);
  if (H5Tget_class(type.id()) != H5T_STRING) throw DataError("{}: not text", place(path));
  if (H5Tis_variable_str(type.id()) > 0) refuse_variable_text(place(path));
  const size_t width = H5Tget_size(type.id());
  const auto count = static_cast<size_t>(element_count(stored.shape()));
  if (count * width != H5Dget_storage_size(stored.id())) {
    throw DataError("{}: the size of the text is not what its header says", place(path));
  }
  std::string padded(count * width, '\0');
  if (count > 0 &&
      H5Dread(stored.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()) < 0) {
    fail_read(place(path), "read");
  }
  std::vector<std::string> out(count);
  for (size_t i = 0; i < count; ++i) {
    out[i] = padded.substr(i * width, width);
    out[i].erase(out[i].find_last_not_of('\0') + 1);
  }
  return out;
}

void Group::remove(const std::string& path) {
  silence();
  if (H5Ldelete(handle_.id(), path.c_str(), H5P_DEFAULT) < 0) fail_write(place(path), "remove");
}

// ---- files ----

File File::create(const std::string& path, int64_t room) {
  silence();
  if (room > 0) {  // before the library's first write, and again below, as it truncates the file
    std::ofstream(path).flush();
    reserve_disk(path, room);
  }
  const Handle list = object_list(H5P_FILE_CREATE);
  const Handle access = access_list();
  Handle handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, list.id(), access.id()),
                Handle::Kind::kFile);
  if (!handle) throw IoError("{}: cannot create: {}", path, reason().text);
  if (room > 0) reserve_disk(path, room);
  return File(path, "/", std::move(handle));
}

File File::open(const std::string& path, OpenMode mode) {
  silence();
  std::error_code missing;
  if (!std::filesystem::exists(path, missing)) throw IoError("{}: no such file", path);
  const Handle access = access_list();
  const unsigned flags = mode == OpenMode::kRead ? H5F_ACC_RDONLY : H5F_ACC_RDWR;
  Handle handle(H5Fopen(path.c_str(), flags, access.id()), Handle::Kind::kFile);
  if (!handle) {
    const Reason why = reason();
    if (why.system) throw IoError("{}: cannot open: {}", path, why.text);
    throw DataError("{}: not a whole HDF5 file: {}", path, why.text);
  }
  return File(path, "/", std::move(handle));
}

bool File::is_hdf5(const std::string& path) {
  silence();
  const bool yes = H5Fis_hdf5(path.c_str()) > 0;
  H5Eclear2(H5E_DEFAULT);
  return yes;
}

File::~File() = default;

void File::flush() {
  silence();
  if (H5Fflush(handle_.id(), H5F_SCOPE_LOCAL) < 0) fail_write(file_, "flush");
}

void File::close() {
  if (!handle_) return;
  flush();
  const ssize_t open = H5Fget_obj_count(handle_.id(), H5F_OBJ_ALL);
  if (open > 1) throw IoError("{}: closed while {} of its objects are still open", file_, open - 1);
  if (!handle_.close()) fail_write(file_, "close");
}

}  // namespace degu::h5
