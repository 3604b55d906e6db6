// The checks at the door of an operator: type, size and device of each argument, with the values
// and the names in the message. Nothing below the door checks again.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/error.h"
#include "kernels/api/rows.h"
#include "tensor/context.h"

namespace degu::check {

inline void on_device(const Context& context, std::string_view op, std::string_view name,
                      const AnyView& view) {
  if (view.device != context.device()) {
    throw ShapeError("{}: {} is not on the context's device; copy it there first", op, name);
  }
}

// `view` is present, on the context's device, and of one of `types`.
inline void type(const Context& context, std::string_view op, std::string_view name,
                 const AnyView& view, std::initializer_list<DType> types) {
  std::string wanted;
  for (DType each : types) {
    if (view.dtype == each) wanted.clear();
    if (view.dtype == each) break;
    wanted += wanted.empty() ? "" : " or ";
    wanted += dtype_name(each);
  }
  if (!wanted.empty()) {
    throw ShapeError("{}: {} is {}, must be {}", op, name, dtype_name(view.dtype), wanted);
  }
  if (!view && view.elements() != 0) throw ShapeError("{}: {} is a null view", op, name);
  on_device(context, op, name, view);
}

inline void floating(const Context& context, std::string_view op, std::string_view name,
                     const AnyView& view) {
  type(context, op, name, view, {DType::kF32, DType::kBF16});
}

inline void elements(std::string_view op, std::string_view name, const AnyView& view,
                     int64_t expected) {
  if (view.elements() != expected) {
    throw ShapeError("{}: {} is {} ({} elements), must hold {}", op, name, view.shape.str(),
                     view.elements(), expected);
  }
}

// Type and element count of `view` are those of `like`.
inline void same(const Context& context, std::string_view op, std::string_view name,
                 const AnyView& view, std::string_view like_name, const AnyView& like) {
  if (view.dtype != like.dtype) {
    throw ShapeError("{}: {} is {} and {} is {}; they must be of one type", op, name,
                     dtype_name(view.dtype), like_name, dtype_name(like.dtype));
  }
  type(context, op, name, view, {like.dtype});
  elements(op, name, view, like.elements());
}

// `view` is a matrix (or a stack of them) of rows of `width`; returns how many rows.
inline int64_t rows_of(std::string_view op, std::string_view name, const AnyView& view,
                       int64_t width) {
  const int rank = view.shape.rank();
  if (width <= 0 || rank == 0 || view.shape.elements() % width != 0 ||
      (rank > 1 && view.shape[rank - 1] != width)) {
    throw ShapeError("{}: {} is {}, must have rows of {}", op, name, view.shape.str(), width);
  }
  return view.shape.elements() / width;
}

// Segments of one group that cover `rows` rows.
inline void segments(std::string_view op, const UnitSegments& segments, int64_t rows) {
  if (!segments.consistent() || segments.groups != 1 || segments.slots < 1 || segments.units < 1) {
    throw ShapeError("{}: {} segment offsets for {} group(s), {} slot(s) of {} unit(s)", op,
                     segments.offsets.size(), segments.groups, segments.slots, segments.units);
  }
  if (segments.offsets.front() != 0 || segments.rows() != rows) {
    throw ShapeError("{}: segments cover rows {} to {}, the matrices have {}", op,
                     segments.offsets.front(), segments.rows(), rows);
  }
}

}  // namespace degu::check
