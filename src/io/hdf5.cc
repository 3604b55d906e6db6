#include "io/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace degu::h5 {
namespace {

// The library prints errors of each thread by default; every entry point passes here first.
void silence() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

// The most specific sentence of the library's error stack; `system` tells whether the operating
// system refused (then it is an IoError whatever the call).
struct Reason {
  std::string text = "unknown HDF5 error";
  bool system = false;
};

Reason reason() {
  Reason out;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned depth, const H5E_error2_t* entry, void* data) -> herr_t {
        auto* result = static_cast<Reason*>(data);
        const std::string text = entry->desc ? entry->desc : "";
        const size_t start = text.find("error message = '");
        if (start != std::string::npos && !result->system) {
          const size_t from = start + std::strlen("error message = '");
          result->text = text.substr(from, text.find('\'', from) - from);
          result->system = true;
        } else if (depth == 0 && !text.empty()) {
          result->text = text;
        }
        return 0;
      },
      &out);
  H5Eclear2(H5E_DEFAULT);
  return out;
}

[[noreturn]] void fail_write(const std::string& place, std::string_view action) {
  throw IoError("{}: cannot {}: {}", place, action, reason().text);
}
[[noreturn]] void fail_read(const std::string& place, std::string_view action) {
  const Reason why = reason();
  if (why.system) throw IoError("{}: cannot {}: {}", place, action, why.text);
  throw DataError("{}: cannot {}: {}", place, action, why.text);
}

hid_t file_type(ElementType type) {
  switch (type) {
    case ElementType::kI8:
      return H5T_STD_I8LE;
    case ElementType::kU8:
      return H5T_STD_U8LE;
    case ElementType::kI16:
      return H5T_STD_I16LE;
    case ElementType::kU16:
      return H5T_STD_U16LE;
    case ElementType::kI32:
      return H5T_STD_I32LE;
    case ElementType::kU32:
      return H5T_STD_U32LE;
    case ElementType::kI64:
      return H5T_STD_I64LE;
    case ElementType::kU64:
      return H5T_STD_U64LE;
    case ElementType::kF32:
      return H5T_IEEE_F32LE;
    case ElementType::kF64:
      break;
  }
  return H5T_IEEE_F64LE;
}

hid_t memory_type(ElementType type) {
  switch (type) {
    case ElementType::kI8:
      return H5T_NATIVE_INT8;
    case ElementType::kU8:
      return H5T_NATIVE_UINT8;
    case ElementType::kI16:
      return H5T_NATIVE_INT16;
    case ElementType::kU16:
      return H5T_NATIVE_UINT16;
    case ElementType::kI32:
      return H5T_NATIVE_INT32;
    case ElementType::kU32:
      return H5T_NATIVE_UINT32;
    case ElementType::kI64:
      return H5T_NATIVE_INT64;
    case ElementType::kU64:
      return H5T_NATIVE_UINT64;
    case ElementType::kF32:
      return H5T_NATIVE_FLOAT;
    case ElementType::kF64:
      break;
  }
  return H5T_NATIVE_DOUBLE;
}

constexpr ElementType kAllTypes[] = {
    ElementType::kI8,  ElementType::kU8,  ElementType::kI16, ElementType::kU16, ElementType::kI32,
    ElementType::kU32, ElementType::kI64, ElementType::kU64, ElementType::kF32, ElementType::kF64};

// Which of ours a stored type is, whatever its byte order; -1 if none.
int classify(hid_t stored) {
  const H5T_class_t kind = H5Tget_class(stored);
  if (kind != H5T_INTEGER && kind != H5T_FLOAT) return -1;
  for (ElementType type : kAllTypes) {
    const hid_t mine = file_type(type);
    if (H5Tget_class(mine) != kind || H5Tget_size(mine) != H5Tget_size(stored)) continue;
    if (kind == H5T_INTEGER && H5Tget_sign(mine) != H5Tget_sign(stored)) continue;
    return static_cast<int>(type);
  }
  return -1;
}

std::vector<hsize_t> to_hsize(const Shape& shape) {
  return std::vector<hsize_t>(shape.begin(), shape.end());
}

std::string shape_text(const Shape& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

Handle text_type() {
  Handle type(H5Tcopy(H5T_C_S1), Handle::Kind::kType);
  H5Tset_size(type.id(), H5T_VARIABLE);
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  return type;
}

Handle make_space(const Shape& shape, bool growable = false) {
  if (shape.empty()) return Handle(H5Screate(H5S_SCALAR), Handle::Kind::kSpace);
  const auto dims = to_hsize(shape);
  auto limits = dims;
  if (growable) limits[0] = H5S_UNLIMITED;
  return Handle(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), limits.data()),
                Handle::Kind::kSpace);
}

Shape shape_of_space(hid_t space) {
  const int rank = H5Sget_simple_extent_ndims(space);
  std::vector<hsize_t> dims(static_cast<size_t>(std::max(rank, 0)));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return Shape(dims.begin(), dims.end());
}

Handle object_list(hid_t list_class) {
  Handle list(H5Pcreate(list_class), Handle::Kind::kList);
  H5Pset_obj_track_times(list.id(), false);
  return list;
}

Handle access_list() {
  Handle list(H5Pcreate(H5P_FILE_ACCESS), Handle::Kind::kList);
  H5Pset_libver_bounds(list.id(), H5F_LIBVER_V18, H5F_LIBVER_V110);
  H5Pset_file_locking(list.id(), false, true);
  return list;
}

std::string child_name(const std::string& parent, const std::string& path) {
  if (path.starts_with('/')) return path;
  return (parent == "/" ? parent : parent + "/") + path;
}

// Makes the missing groups above `path`. The library's own way of doing so stamps them with the
// time.
void make_parents(hid_t base, const std::string& path) {
  for (size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
    const std::string prefix = path.substr(0, end);
    if (H5Lexists(base, prefix.c_str(), H5P_DEFAULT) > 0) continue;
    const Handle list = object_list(H5P_GROUP_CREATE);
    const Handle made(H5Gcreate2(base, prefix.c_str(), H5P_DEFAULT, list.id(), H5P_DEFAULT),
                      Handle::Kind::kGroup);
  }
}

}  // namespace

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

// ---- attributes ----

std::string Object::place(std::string_view child) const {
  std::string path = name_;
  if (!child.empty()) {
    if (path.back() != '/') path += '/';
    path += child;
  }
  return file_ + ": '" + path + "'";
}

bool Object::has_attribute(const std::string& name) const {
  silence();
  return H5Aexists(handle_.id(), name.c_str()) > 0;
}

std::vector<std::string> Object::attribute_names() const {
  silence();
  std::vector<std::string> out;
  H5Aiterate2(
      handle_.id(), H5_INDEX_NAME, H5_ITER_INC, nullptr,
      [](hid_t, const char* name, const H5A_info_t*, void* data) -> herr_t {
        static_cast<std::vector<std::string>*>(data)->emplace_back(name);
        return 0;
      },
      &out);
  std::sort(out.begin(), out.end());
  return out;
}

void Object::write_attribute(const std::string& name, ElementType type, const void* data,
                             const Shape& shape) {
  silence();
  if (has_attribute(name)) H5Adelete(handle_.id(), name.c_str());
  const bool empty = element_count(shape) == 0;
  const Handle space =
      empty ? Handle(H5Screate(H5S_NULL), Handle::Kind::kSpace) : make_space(shape);
  const Handle attribute(
      H5Acreate2(handle_.id(), name.c_str(), file_type(type), space.id(), H5P_DEFAULT, H5P_DEFAULT),
      Handle::Kind::kAttribute);
  if (!attribute || (!empty && H5Awrite(attribute.id(), memory_type(type), data) < 0)) {
    fail_write(place(), "write attribute '" + name + "'");
  }
}

void Object::set_attribute(const std::string& name, std::string_view text) {
  silence();
  if (has_attribute(name)) H5Adelete(handle_.id(), name.c_str());
  const Handle type(H5Tcopy(H5T_C_S1), Handle::Kind::kType);
  H5Tset_size(type.id(), std::max<size_t>(text.size(), 1));
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  H5Tset_strpad(type.id(), H5T_STR_NULLPAD);
  const Handle space = make_space({});
  const Handle attribute(
      H5Acreate2(handle_.id(), name.c_str(), type.id(), space.id(), H5P_DEFAULT, H5P_DEFAULT),
      Handle::Kind::kAttribute);
  const std::string padded = text.empty() ? std::string(1, '\0') : std::string(text);
  if (!attribute || H5Awrite(attribute.id(), type.id(), padded.data()) < 0) {
    fail_write(place(), "write attribute '" + name + "'");
  }
}

int64_t Object::attribute_size(const std::string& name) const {
  silence();
  const Handle attribute(H5Aopen(handle_.id(), name.c_str(), H5P_DEFAULT),
                         Handle::Kind::kAttribute);
  if (!attribute) throw DataError("{}: attribute '{}' is missing", place(), name);
  const Handle space(H5Aget_space(attribute.id()), Handle::Kind::kSpace);
  return H5Sget_simple_extent_npoints(space.id());
}

void Object::read_attribute(const std::string& name, ElementType type, void* data,
                            int64_t count) const {
  const int64_t stored_count = attribute_size(name);
  if (stored_count != count) {
    throw DataError("{}: attribute '{}' has {} values, expected {}", place(), name, stored_count,
                    count);
  }
  if (count == 0) return;
  const Handle attribute(H5Aopen(handle_.id(), name.c_str(), H5P_DEFAULT),
                         Handle::Kind::kAttribute);
  const Handle stored(H5Aget_type(attribute.id()), Handle::Kind::kType);
  const int stored_type = classify(stored.id());
  if (stored_type < 0) {
    throw DataError("{}: attribute '{}' is not a number", place(), name);
  }
  std::vector<unsigned char> raw(static_cast<size_t>(count) * 8);
  if (H5Aread(attribute.id(), memory_type(static_cast<ElementType>(stored_type)), raw.data()) < 0) {
    fail_read(place(), "read attribute '" + name + "'");
  }
  // Convert, then convert back: equal bytes mean that no value was lost.
  const hid_t from = memory_type(static_cast<ElementType>(stored_type));
  const hid_t to = memory_type(type);
  std::vector<unsigned char> converted = raw;
  H5Tconvert(from, to, static_cast<size_t>(count), converted.data(), nullptr, H5P_DEFAULT);
  std::vector<unsigned char> back = converted;
  H5Tconvert(to, from, static_cast<size_t>(count), back.data(), nullptr, H5P_DEFAULT);
  const size_t stored_bytes =
      static_cast<size_t>(count) * size_of(static_cast<ElementType>(stored_type));
  if (std::memcmp(back.data(), raw.data(), stored_bytes) != 0) {
    throw DataError("{}: attribute '{}' holds a {} value that does not fit {}", place(), name,
                    element_name(static_cast<ElementType>(stored_type)), element_name(type));
  }
  std::memcpy(data, converted.data(), static_cast<size_t>(count) * size_of(type));
}

std::string Object::attribute_text(const std::string& name) const {
  silence();
  const Handle attribute(H5Aopen(handle_.id(), name.c_str(), H5P_DEFAULT),
                         Handle::Kind::kAttribute);
  if (!attribute) throw DataError("{}: attribute '{}' is missing", place(), name);
  const Handle type(H5Aget_type(attribute.id()), Handle::Kind::kType);
  if (H5Tget_class(type.id()) != H5T_STRING) {
    throw DataError("{}: attribute '{}' is not text", place(), name);
  }
  if (H5Tis_variable_str(type.id()) > 0) {  // as h5py writes them
    char* text = nullptr;
    const Handle memory = text_type();
    H5Tset_cset(memory.id(), H5Tget_cset(type.id()));
    if (H5Aread(attribute.id(), memory.id(), &text) < 0) {
      fail_read(place(), "read attribute '" + name + "'");
    }
    std::string out = text ? text : "";
    H5free_memory(text);
    return out;
  }
  std::string out(H5Tget_size(type.id()), '\0');
  if (H5Aread(attribute.id(), type.id(), out.data()) < 0) {
    fail_read(place(), "read attribute '" + name + "'");
  }
  while (!out.empty() && out.back() == '\0') out.pop_back();
  return out;
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
  const Handle type = text_type();
  const Handle space = make_space({static_cast<int64_t>(values.size())});
  make_parents(handle_.id(), path);
  const Handle list = object_list(H5P_DATASET_CREATE);
  const Handle handle(H5Dcreate2(handle_.id(), path.c_str(), type.id(), space.id(), H5P_DEFAULT,
                                 list.id(), H5P_DEFAULT),
                      Handle::Kind::kDataset);
  if (!handle) fail_write(place(path), "create dataset");
  std::vector<const char*> pointers;
  pointers.reserve(values.size());
  for (const std::string& value : values) pointers.push_back(value.c_str());
  if (!values.empty() &&
      H5Dwrite(handle.id(), type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()) < 0) {
    fail_write(place(path), "write");
  }
}

std::vector<std::string> Group::read_strings(const std::string& path) const {
  const Dataset stored = dataset(path);
  const Handle type(H5Dget_type(stored.id()), Handle::Kind::kType);
  if (H5Tget_class(type.id()) != H5T_STRING || H5Tis_variable_str(type.id()) <= 0) {
    throw DataError("{}: not a list of variable-length strings", place(path));
  }
  const int64_t count = element_count(stored.shape());
  std::vector<char*> pointers(static_cast<size_t>(count), nullptr);
  const Handle memory = text_type();
  H5Tset_cset(memory.id(), H5Tget_cset(type.id()));
  if (count > 0 &&
      H5Dread(stored.id(), memory.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()) < 0) {
    fail_read(place(path), "read");
  }
  std::vector<std::string> out;
  out.reserve(pointers.size());
  for (char* text : pointers) {
    out.emplace_back(text ? text : "");
    H5free_memory(text);
  }
  return out;
}

void Group::remove(const std::string& path) {
  silence();
  if (H5Ldelete(handle_.id(), path.c_str(), H5P_DEFAULT) < 0) fail_write(place(path), "remove");
}

// ---- files ----

File File::create(const std::string& path) {
  silence();
  const Handle list = object_list(H5P_FILE_CREATE);
  const Handle access = access_list();
  Handle handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, list.id(), access.id()),
                Handle::Kind::kFile);
  if (!handle) throw IoError("{}: cannot create: {}", path, reason().text);
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
