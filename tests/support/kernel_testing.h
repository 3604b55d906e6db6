// What the kernel tests share: contexts of every instruction set and thread count, random tensors,
// plain references in double precision whose tolerances follow from the inputs, and tables of row
// counts.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/api/rows.h"
#include "tensor/context.h"
#include "tensor/tensor.h"

namespace degu::testing {

inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

inline ContextOptions test_options(Isa isa, int threads) {
  return {.threads = threads, .scratch_bytes = size_t{256} << 20, .isa = isa};
}

// body(Context&) once per supported instruction set, on two threads.
template <class Body>
void for_each_isa(Body&& body) {
  for (Isa isa : supported_isas()) {
    INFO("isa " << isa_name(isa));
    Context context(test_options(isa, 2));
    body(context);
  }
}

// body(Context&) for 1, 2 and 3 threads of one instruction set.
template <class Body>
void for_each_thread_count(Isa isa, Body&& body) {
  for (int threads : {1, 2, 3}) {
    INFO("isa " << isa_name(isa) << ", threads " << threads);
    Context context(test_options(isa, threads));
    body(context);
  }
}

// Element i of a view of any floating or integer type.
inline double element(const AnyView& view, int64_t i) {
  switch (view.dtype) {
    case DType::kF32:
      return static_cast<const float*>(view.data)[i];
    case DType::kBF16:
      return static_cast<double>(static_cast<float>(static_cast<const bf16*>(view.data)[i]));
    case DType::kF64:
      return static_cast<const double*>(view.data)[i];
    case DType::kI32:
      return static_cast<const int32_t*>(view.data)[i];
    case DType::kI64:
      return static_cast<double>(static_cast<const int64_t*>(view.data)[i]);
    case DType::kI8:
      return static_cast<const int8_t*>(view.data)[i];
    case DType::kU8:
      break;
  }
  return static_cast<const uint8_t*>(view.data)[i];
}

inline void set_element(const AnyView& view, int64_t i, double value) {
  if (view.dtype == DType::kF32) {
    static_cast<float*>(view.data)[i] = static_cast<float>(value);
  } else if (view.dtype == DType::kBF16) {
    static_cast<bf16*>(view.data)[i] = bf16(static_cast<float>(value));
  } else {
    FAIL("set_element: neither fp32 nor bf16");
  }
}

// Independent normal numbers times `scale`, rounded to the type (fp32 or bf16). Different names
// give different numbers.
inline Tensor random_tensor(DType type, Shape shape, std::string_view name, double scale = 1,
                            uint64_t seed = 7) {
  Tensor tensor(type, shape);
  const RandomStream stream(seed, name);
  for (int64_t i = 0; i < shape.elements(); ++i) {
    set_element(tensor, i, scale * stream.normal(static_cast<uint64_t>(i)));
  }
  return tensor;
}

inline Tensor copy_of(const AnyView& view) {
  Tensor copy(view.dtype, view.shape);
  if (view.bytes() != 0) std::memcpy(copy.view().data, view.data, view.bytes());
  return copy;
}

// NaN in every element: whoever should have written there and did not is found.
inline void fill_nan(const AnyView& view) {
  for (int64_t i = 0; i < view.elements(); ++i) set_element(view, i, std::nan(""));
}

// Half the distance between 1 and the next number of the type: the relative error of one rounding.
inline double unit_roundoff(DType type) {
  return type == DType::kBF16 ? 0x1p-8 : 0x1p-24;
}

// A reference sum in double precision together with what rounding may do to it: a sum of n fp32
// steps (two roundings each at most) errs by no more than 2 n u sum |terms|, and storing it in
// `stored` adds one rounding of the result.
class ReferenceSum {
 public:
  void add(double term) {
    value_ += term;
    magnitude_ += std::fabs(term);
    ++steps_;
  }
  double value() const { return value_; }
  double tolerance(DType stored) const {
    const double sum_error = 2.0 * (steps_ + 1) * unit_roundoff(DType::kF32) * magnitude_;
    return sum_error + unit_roundoff(stored) * (std::fabs(value_) + sum_error) + 0x1p-126;
  }

 private:
  double value_ = 0;
  double magnitude_ = 0;
  double steps_ = 0;
};

struct Expected {
  std::vector<double> value;
  std::vector<double> tolerance;
  void push(double v, double t) {
    value.push_back(v);
    tolerance.push_back(t);
  }
  void push(const ReferenceSum& sum, DType stored) { push(sum.value(), sum.tolerance(stored)); }
};

// Every element within its tolerance; reports the worst one.
inline void check_close(const std::string& name, const AnyView& got, const Expected& expected) {
  REQUIRE(static_cast<size_t>(got.elements()) == expected.value.size());
  int64_t worst = -1;
  double worst_ratio = 1;
  for (int64_t i = 0; i < got.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const double error = std::fabs(element(got, i) - expected.value[at]);
    const double ratio = error / expected.tolerance[at];
    if (!(ratio <= worst_ratio)) {  // NaN counts as wrong
      worst = i;
      worst_ratio = std::isnan(ratio) ? INFINITY : ratio;
    }
  }
  if (worst >= 0) {
    const auto at = static_cast<size_t>(worst);
    FAIL_CHECK(name << got.shape.str() << " element " << worst << ": got " << element(got, worst)
                    << ", expected " << expected.value[at] << " +- " << expected.tolerance[at]);
  }
}

// Whether two views hold the same bytes; `first_difference` is -1 when they do.
inline int64_t first_difference(const AnyView& a, const AnyView& b) {
  REQUIRE(a.dtype == b.dtype);
  REQUIRE(a.elements() == b.elements());
  const size_t size = size_of(a.dtype);
  for (int64_t i = 0; i < a.elements(); ++i) {
    const size_t at = static_cast<size_t>(i) * size;
    if (std::memcmp(static_cast<const char*>(a.data) + at, static_cast<const char*>(b.data) + at,
                    size) != 0) {
      return i;
    }
  }
  return -1;
}

inline void check_same_bits(const std::string& name, const AnyView& got, const AnyView& expected) {
  const int64_t at = first_difference(got, expected);
  if (at >= 0) {
    FAIL_CHECK(name << got.shape.str() << " element " << at << ": got " << element(got, at)
                    << ", expected the bits of " << element(expected, at));
  }
}

inline std::vector<int64_t> offsets_of(const std::vector<int64_t>& counts) {
  std::vector<int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

// Row counts per group: none at all, one row, empty groups at either end and in the middle, one
// group that has everything, and counts on both sides of tiles of 4, 6, 8, 12 and 16 rows.
inline const std::vector<std::vector<int64_t>>& ragged_row_counts() {
  static const std::vector<std::vector<int64_t>> kCounts = {
      {0, 0, 0},    {1, 0, 0},     {0, 1, 2, 3}, {4, 5, 6, 7, 8},     {11, 12, 13},
      {23, 0, 25},  {0, 37, 0, 1}, {16, 17, 15}, {0, 0, 0, 0, 96, 0}, {31, 2, 0, 33, 1, 64},
      {129, 3, 48},
  };
  return kCounts;
}

}  // namespace degu::testing
