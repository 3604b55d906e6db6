// Rows of activations as codes with scales, and weights as the numbers of a quantized scheme.
#pragma once

#include <concepts>

#include "kernels/common/codes.h"
#include "kernels/formats/list.h"
#include "tensor/context.h"

namespace degu {

// The left operand of a product: rows as they are (fp32 or bf16), or int8 codes with a scale per
// row and group of kScaleGroup elements. A token is quantized once, whatever reads it.
struct Activation {
  AnyView values;  // [R, D]; codes: int8, [R, D rounded up to whole groups], zeros beyond D
  AnyView scales;  // null, or fp32 [R, groups]

  Activation() = default;
  // Rows as they are: whatever is a view.
  template <std::convertible_to<AnyView> Plain>
  Activation(const Plain& plain) : values(plain) {}  // NOLINT: implicit by design
  Activation(AnyView codes, AnyView s) : values(codes), scales(s) {}

  Activation rows(int64_t begin, int64_t count) const {
    return {values.rows(begin, count), scales ? scales.rows(begin, count) : AnyView{}};
  }
  // Uninitialised memory for `rows` quantized rows of D elements.
  static Activation take(Arena& arena, int64_t rows, int64_t width);
};

// out = x_RD (fp32 or bf16) quantized: per group s = most / 127 with most the largest magnitude, q
// = x * (127 / most) rounded to nearest even, so |q| <= 127. A group below 2^-100 counts as zeros
// (scale 0); one that holds an infinity or NaN gets the scale NaN and zeros for codes, so that
// every product of the row is NaN. Rows are independent of each other; all instruction sets give
// the same bits.
void quantize_rows(Context& context, AnyView x_RD, const Activation& out);

// A weight as a checkpoint holds it: row-major codes and their scales.
struct QuantizedWeight {
  Scheme scheme = Scheme::kW8A8;
  Shape shape;     // [E, F, D] or [F, D]
  AnyView codes;   // code_shape: int8, or uint8
  AnyView scales;  // scale_shape: bf16

  int64_t rows() const { return shape.elements() / inner(); }
  int64_t inner() const { return shape[shape.rank() - 1]; }
};

// [E, F, D], with D/2 rounded up in place of D for 4-bit codes; [E, F, groups].
Shape code_shape(Scheme scheme, const Shape& weight);
Shape scale_shape(const Shape& weight);

// Round to nearest: per group the scale is bf16(most / largest code), the codes are w / scale
// rounded to nearest even. `weight` must be fp32 and finite: DataError with the place otherwise.
void quantize_weight(Context& context, AnyView w_EFD, const QuantizedWeight& out);

// w_EFD (fp32 or bf16) = codes * scales, one rounding each.
void dequantize_weight(Context& context, const QuantizedWeight& weight, AnyView w_EFD);

// ShapeError unless shapes and types of `weight` fit together and it lies on `device`.
void check_quantized(const char* op, const QuantizedWeight& weight,
                     DeviceType device = DeviceType::kCpu);

}  // namespace degu
