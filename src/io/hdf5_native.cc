#include "io/hdf5_native.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace degu::h5 {

void silence() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

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

void fail_write(const std::string& place, std::string_view action) {
  throw IoError("{}: cannot {}: {}", place, action, reason().text);
}
void fail_read(const std::string& place, std::string_view action) {
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

static constexpr ElementType kAllTypes[] = {
    ElementType::kI8,  ElementType::kU8,  ElementType::kI16, ElementType::kU16, ElementType::kI32,
    ElementType::kU32, ElementType::kI64, ElementType::kU64, ElementType::kF32, ElementType::kF64};

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

Handle text_type(size_t length) {
  Handle type(H5Tcopy(H5T_C_S1), Handle::Kind::kType);
  H5Tset_size(type.id(), std::max<size_t>(length, 1));
  H5Tset_cset(type.id(), H5T_CSET_UTF8);
  H5Tset_strpad(type.id(), H5T_STR_NULLPAD);
  return type;
}

void refuse_variable_text(const std::string& place) {
  throw DataError("{}: text of variable length is not read; write it with a fixed length", place);
}

Handle make_space(const Shape& shape, bool growable) {
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

void make_parents(hid_t base, const std::string& path) {
  for (size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
    const std::string prefix = path.substr(0, end);
    if (H5Lexists(base, prefix.c_str(), H5P_DEFAULT) > 0) continue;
    const Handle list = object_list(H5P_GROUP_CREATE);
    const Handle made(H5Gcreate2(base, prefix.c_str(), H5P_DEFAULT, list.id(), H5P_DEFAULT),
                      Handle::Kind::kGroup);
  }
}

}  // namespace degu::h5
