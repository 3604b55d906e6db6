// Views: a pointer, a shape and a type; no ownership. Functions take views by value. Memory is
// dense and row-major: the last dimension is contiguous.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"
#include "tensor/dtype.h"

namespace degu {

// kPlan: an accelerator that need not be there; what is laid out on it is address space that nobody
// may touch, to learn sizes. Only the first two are names that a user may give.
enum class DeviceType : uint8_t { kCpu, kCuda, kPlan };
constexpr auto enum_names(DeviceType) {
  return std::array<std::string_view, 2>{"cpu", "cuda"};
}

// Up to four dimensions, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> dims) {
    for (int64_t d : dims) dims_[static_cast<size_t>(rank_++)] = d;
  }
  constexpr int rank() const { return rank_; }
  constexpr int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  constexpr int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[static_cast<size_t>(i)];
    return n;
  }
  // The same with another first dimension; of rank 1 and above.
  constexpr Shape with_rows(int64_t count) const {
    Shape out = *this;
    out.dims_[0] = count;
    return out;
  }
  constexpr int64_t row_elements() const {
    int64_t n = 1;
    for (int i = 1; i < rank_; ++i) n *= dims_[static_cast<size_t>(i)];
    return n;
  }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
  std::string str() const;  // "[4096, 512]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// Typed view, for arithmetic inside kernels and tests. It forgets the device: only AnyView knows
// it.
template <class T>
class View {
 public:
  View() = default;
  View(T* data, Shape shape) : data_(data), shape_(shape) {}
  // A view of non-const elements converts to one of const elements.
  template <class U>
  requires std::is_same_v<const U, T> View(View<U> other)
      : data_(other.data()), shape_(other.shape()) {}  // NOLINT: implicit by design

  T* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t elements() const { return shape_.elements(); }
  T& operator[](int64_t i) const { return data_[i]; }
  T& operator()(int64_t i, int64_t j) const { return data_[i * shape_[1] + j]; }
  T& operator()(int64_t i, int64_t j, int64_t k) const {
    return data_[(i * shape_[1] + j) * shape_[2] + k];
  }
  T* row(int64_t i) const { return data_ + i * (shape_.rank() > 0 ? shape_.row_elements() : 0); }

 private:
  T* data_ = nullptr;
  Shape shape_;
};

// View whose element type and device are known at run time: what operators take.
struct AnyView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  DeviceType device = DeviceType::kCpu;
  Shape shape;

  AnyView() = default;
  AnyView(void* d, DType t, Shape s, DeviceType dev = DeviceType::kCpu)
      : data(d), dtype(t), device(dev), shape(s) {}
  // Inputs are views too; operators say in their headers which arguments they write.
  template <class T>
  AnyView(View<T> v)  // NOLINT: implicit by design
      : data(const_cast<std::remove_const_t<T>*>(v.data())),
        dtype(dtype_of<std::remove_const_t<T>>),
        shape(v.shape()) {}

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[i]; }
  int64_t elements() const { return shape.elements(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }

  template <class T>
  View<T> as() const {
    DEGU_DCHECK(dtype == dtype_of<std::remove_const_t<T>>);
    return View<T>(static_cast<T*>(data), shape);
  }
  // The same memory under another shape of as many elements.
  AnyView reshaped(Shape s) const {
    DEGU_DCHECK(s.elements() == shape.elements());
    return {data, dtype, s, device};
  }
  // Rows [begin, begin + count) of the first dimension.
  AnyView rows(int64_t begin, int64_t count) const;
};

}  // namespace degu
