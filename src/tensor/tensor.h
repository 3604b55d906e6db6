// An owning, zero-initialised, 64-byte aligned block of memory with a type and a shape.
#pragma once

#include "tensor/arena.h"
#include "tensor/view.h"

namespace degu {

class Tensor {
 public:
  Tensor() = default;
  // On an accelerator: that which the process has opened (tensor/device.h).
  Tensor(DType type, Shape shape, DeviceType device = DeviceType::kCpu)
      : memory_(static_cast<size_t>(shape.elements()) * size_of(type), device),
        view_(memory_.take(type, shape)) {}

  const AnyView& view() const { return view_; }
  operator AnyView() const { return view_; }  // NOLINT: a tensor is used wherever a view is
  template <class T>
  View<T> as() const {
    return view_.as<T>();
  }
  const Shape& shape() const { return view_.shape; }
  DeviceType device() const { return view_.device; }
  DType dtype() const { return view_.dtype; }
  size_t bytes() const { return view_.bytes(); }
  explicit operator bool() const { return static_cast<bool>(view_); }

 private:
  Arena memory_;
  AnyView view_;
};

}  // namespace degu
