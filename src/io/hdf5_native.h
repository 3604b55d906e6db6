// What the HDF5 wrapper's own sources share: types, property lists, errors. The library's C
// interface stays behind this header.
#pragma once

#include <hdf5.h>

#include <string>
#include <string_view>
#include <vector>

#include "io/hdf5.h"

namespace degu::h5 {

// The library prints errors of each thread by default; every entry point passes here first.
void silence();

// The most specific sentence of the library's error stack; `system` tells whether the operating
// system refused (then it is an IoError whatever the call).
struct Reason {
  std::string text = "unknown HDF5 error";
  bool system = false;
};
Reason reason();

// Throw with the reason. A read that the system refused is an IoError, any other a DataError.
[[noreturn]] void fail_write(const std::string& place, std::string_view action);
[[noreturn]] void fail_read(const std::string& place, std::string_view action);

hid_t file_type(ElementType type);
hid_t memory_type(ElementType type);
// UTF-8 of a fixed length (at least 1), padded with zeros.
Handle text_type(size_t length);
// Texts of variable length lie on a heap in the file whose damage the library does not survive.
[[noreturn]] void refuse_variable_text(const std::string& place);
// Which of ours a stored type is, whatever its byte order; -1 if none.
int classify(hid_t stored);

std::vector<hsize_t> to_hsize(const Shape& shape);
std::string shape_text(const Shape& shape);
Handle make_space(const Shape& shape, bool growable = false);
Shape shape_of_space(hid_t space);

Handle object_list(hid_t list_class);  // creation properties without time stamps
Handle access_list();

std::string child_name(const std::string& parent, const std::string& path);
// Makes the missing groups above `path`. The library's own way of doing so stamps them with the
// time.
void make_parents(hid_t base, const std::string& path);

}  // namespace degu::h5
