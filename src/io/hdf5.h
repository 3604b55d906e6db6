// HDF5 files as plain objects: file, group, dataset, attribute. A thin layer over the serial C
// library.
//
// Errors: a file that cannot be opened, created or written is an IoError; a file, object or
// attribute whose content is not what the caller asked for (missing, other type, other shape,
// failed checksum, truncated) is a DataError. Both name the file and the object. HDF5's own
// printing of errors is silenced.
//
// Numbers are stored little-endian and without time stamps, so equal calls write equal files. New
// files keep to the 1.8 format, which every HDF5 tool reads. Files are opened without HDF5's
// advisory locks: writers make a temporary file and rename it (io/atomic_file.h), so a reader never
// sees one being written.
//
// Threads: the library serialises its calls; one object may be used by one thread at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor/dtype.h"

namespace degu::h5 {

// Library identifier (`hid_t`) with its release. Move-only.
class Handle {
 public:
  enum class Kind : uint8_t { kNone, kFile, kGroup, kDataset, kSpace, kType, kAttribute, kList };

  Handle() = default;
  Handle(int64_t id, Kind kind) : id_(id), kind_(kind) {}
  Handle(Handle&& other) noexcept { swap(other); }
  Handle& operator=(Handle&& other) noexcept {
    Handle(std::move(other)).swap(*this);
    return *this;
  }
  ~Handle() { close(); }

  int64_t id() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }
  bool close() noexcept;  // false: the library reported an error (a full disk, say)

 private:
  void swap(Handle& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(kind_, other.kind_);
  }
  int64_t id_ = -1;
  Kind kind_ = Kind::kNone;
};

enum class ElementType : uint8_t { kI8, kU8, kI16, kU16, kI32, kU32, kI64, kU64, kF32, kF64 };

size_t size_of(ElementType type);
std::string_view element_name(ElementType type);

// bf16 has no HDF5 type of its own; it is stored as its 16 bits (kU16).
constexpr ElementType element_of(DType type) {
  switch (type) {
    case DType::kF32:
      return ElementType::kF32;
    case DType::kBF16:
      return ElementType::kU16;
    case DType::kI8:
      return ElementType::kI8;
    case DType::kU8:
      return ElementType::kU8;
    case DType::kI32:
      return ElementType::kI32;
    case DType::kI64:
      return ElementType::kI64;
    case DType::kF64:
      break;
  }
  return ElementType::kF64;
}

template <class T>
concept Element = (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) || std::is_same_v<T, bf16>;

template <Element T>
constexpr ElementType element_type_of() {
  if constexpr (std::is_same_v<T, bf16>) {
    return ElementType::kU16;
  } else if constexpr (std::is_floating_point_v<T>) {
    static_assert(sizeof(T) <= 8);
    return sizeof(T) == 4 ? ElementType::kF32 : ElementType::kF64;
  } else {
    constexpr int log2_size = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    return static_cast<ElementType>(2 * log2_size + (std::is_signed_v<T> ? 0 : 1));
  }
}

using Shape = std::vector<int64_t>;  // outermost dimension first; {} is a scalar

int64_t element_count(const Shape& shape);

// How a new dataset is laid out. The default is one contiguous block of fixed size.
struct Layout {
  Shape chunk;            // empty: contiguous. Needed for everything below; one entry per dimension
  int deflate = 0;        // gzip level 1-9 of each chunk; 0: none
  bool shuffle = false;   // transpose the bytes of a chunk first: integers then compress better
  bool checksum = false;  // Fletcher-32 of each chunk, verified when read
  bool growable = false;  // the first dimension may grow (Dataset::append)
};

class Dataset;
class Group;

// What files, groups and datasets share: a place for messages, and attributes.
class Object {
 public:
  const std::string& file_name() const { return file_; }
  const std::string& name() const { return name_; }  // absolute, "/" for the root
  int64_t id() const { return handle_.id(); }

  bool has_attribute(const std::string& name) const;
  std::vector<std::string> attribute_names() const;  // sorted

  // An attribute that exists is replaced.
  template <Element T>
  void set_attribute(const std::string& name, T value) {
    write_attribute(name, element_type_of<T>(), &value, {});
  }
  template <Element T>
  void set_attribute(const std::string& name, const std::vector<T>& values) {
    write_attribute(name, element_type_of<T>(), values.data(),
                    {static_cast<int64_t>(values.size())});
  }
  void set_attribute(const std::string& name, std::string_view text);
  void set_attribute(const std::string& name, const char* text) {
    set_attribute(name, std::string_view(text));
  }

  // Numbers convert between types as long as the value survives; DataError otherwise.
  template <Element T>
  T attribute(const std::string& name) const {
    T value{};
    read_attribute(name, element_type_of<T>(), &value, 1);
    return value;
  }
  template <Element T>
  std::vector<T> attribute_vector(const std::string& name) const {
    std::vector<T> values(static_cast<size_t>(attribute_size(name)));
    read_attribute(name, element_type_of<T>(), values.data(), static_cast<int64_t>(values.size()));
    return values;
  }
  std::string attribute_text(const std::string& name) const;

 protected:
  Object() = default;
  Object(std::string file, std::string name, Handle handle)
      : file_(std::move(file)), name_(std::move(name)), handle_(std::move(handle)) {}

  void write_attribute(const std::string& name, ElementType type, const void* data,
                       const Shape& shape);
  void read_attribute(const std::string& name, ElementType type, void* data, int64_t count) const;
  int64_t attribute_size(const std::string& name) const;
  std::string place(std::string_view child = {}) const;  // "file: '/a/b'"

  std::string file_;
  std::string name_;
  Handle handle_;
};

// An array of numbers. Reads and writes are of rows (slices of the first dimension) or of boxes.
class Dataset : public Object {
 public:
  Shape shape() const;
  int64_t rows() const;  // first dimension; 1 for a scalar
  // Where a contiguous dataset's elements start in the file, for mapping them into memory; nothing
  // for other layouts and for datasets that have no storage yet.
  std::optional<int64_t> file_offset() const;
  int64_t row_size() const;          // elements of one row
  ElementType element_type() const;  // DataError if it holds something else, strings for instance

  template <Element T>
  std::vector<T> read() const {
    std::vector<T> out(static_cast<size_t>(element_count(shape())));
    read_box({}, {}, element_type_of<T>(), out.data(), static_cast<int64_t>(out.size()));
    return out;
  }
  template <Element T>
  void read_rows(int64_t first, std::span<T> out) const {
    rows_box(first, static_cast<int64_t>(out.size()), [&](const Shape& start, const Shape& count) {
      read_box(start, count, element_type_of<T>(), out.data(), static_cast<int64_t>(out.size()));
    });
  }
  template <Element T>
  std::vector<T> read_rows(int64_t first, int64_t rows) const {
    std::vector<T> out(static_cast<size_t>(rows * row_size()));
    read_rows(first, std::span<T>(out));
    return out;
  }
  template <Element T>
  void write(std::span<const T> values) {
    write_box({}, {}, element_type_of<T>(), values.data(), static_cast<int64_t>(values.size()));
  }
  template <Element T>
  void write_rows(int64_t first, std::span<const T> values) {
    rows_box(first, static_cast<int64_t>(values.size()),
             [&](const Shape& start, const Shape& count) {
               write_box(start, count, element_type_of<T>(), values.data(),
                         static_cast<int64_t>(values.size()));
             });
  }
  // Grows a `growable` dataset by whole rows.
  template <Element T>
  void append(std::span<const T> values) {
    append_rows(element_type_of<T>(), values.data(), static_cast<int64_t>(values.size()));
  }

  // The same for a type known at run time. Empty start and count: everything. `elements` is the
  // size of the caller's buffer and must be the box's; DataError when the stored type differs from
  // `type`.
  void read_box(const Shape& start, const Shape& count, ElementType type, void* data,
                int64_t elements) const;
  void write_box(const Shape& start, const Shape& count, ElementType type, const void* data,
                 int64_t elements);

 private:
  friend class Group;
  using Object::Object;
  template <class Visit>
  void rows_box(int64_t first, int64_t elements, Visit&& visit) const {
    const auto [start, count] = box_of_rows(first, elements);
    visit(start, count);
  }
  std::pair<Shape, Shape> box_of_rows(int64_t first, int64_t elements) const;
  Handle select(const Shape& start, const Shape& count, int64_t elements, Handle& memory) const;
  void append_rows(ElementType type, const void* data, int64_t elements);
  void expect(ElementType type) const;
};

class Group : public Object {
 public:
  bool has(const std::string& path) const;
  std::vector<std::string> names() const;  // members in alphabetical order
  bool is_dataset(const std::string& name) const;

  Group create_group(const std::string& path);   // with missing parents; IoError if it exists
  Group require_group(const std::string& path);  // opened, or created
  Group group(const std::string& path) const;

  Dataset create_dataset(const std::string& path, ElementType type, const Shape& shape,
                         const Layout& layout = {});
  template <Element T>
  Dataset create_dataset(const std::string& path, const Shape& shape, const Layout& layout = {}) {
    return create_dataset(path, element_type_of<T>(), shape, layout);
  }
  Dataset dataset(const std::string& path) const;

  // Whole small datasets in one call.
  template <Element T>
  Dataset write(const std::string& path, std::span<const T> values, const Layout& layout = {}) {
    return write(path, values, {static_cast<int64_t>(values.size())}, layout);
  }
  template <Element T>
  Dataset write(const std::string& path, const std::vector<T>& values, const Layout& layout = {}) {
    return write(path, std::span<const T>(values), layout);
  }
  template <Element T>
  Dataset write(const std::string& path, std::span<const T> values, const Shape& shape,
                const Layout& layout = {}) {
    Dataset out = create_dataset<T>(path, shape, layout);
    out.write(values);
    return out;
  }
  template <Element T>
  std::vector<T> read(const std::string& path) const {
    return dataset(path).read<T>();
  }
  // Lists of UTF-8 strings, stored with the length of the longest.
  void write_strings(const std::string& path, const std::vector<std::string>& values);
  std::vector<std::string> read_strings(const std::string& path) const;

  void remove(const std::string& path);

 protected:
  using Object::Object;
};

enum class OpenMode { kRead, kReadWrite };

class File : public Group {
 public:
  // Truncates. `room`: bytes to reserve on the disk before anything is written (io/reserve.h).
  static File create(const std::string& path, int64_t room = 0);
  static File open(const std::string& path, OpenMode mode = OpenMode::kRead);
  static bool is_hdf5(const std::string& path);
  File(File&&) noexcept = default;
  File& operator=(File&&) noexcept = default;
  ~File();

  void flush();
  // Reports what the last writes met (a full disk shows only now). The destructor cannot. Datasets
  // and groups of this file must be gone.
  void close();

 private:
  using Group::Group;
};

}  // namespace degu::h5
