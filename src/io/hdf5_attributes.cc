#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "io/hdf5_native.h"

namespace degu::h5 {

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
  const Handle type = text_type(text.size());
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
  if (H5Tis_variable_str(type.id()) > 0)
    refuse_variable_text(place() + ": attribute '" + name + "'");
  std::string out(H5Tget_size(type.id()), '\0');
  if (H5Aread(attribute.id(), type.id(), out.data()) < 0) {
    fail_read(place(), "read attribute '" + name + "'");
  }
  while (!out.empty() && out.back() == '\0') out.pop_back();
  return out;
}

}  // namespace degu::h5
