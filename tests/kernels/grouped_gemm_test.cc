// y = x · W^T over rows grouped by expert, for every scheme and instruction set.
#include "kernels/api/grouped_gemm.h"

#include <vector>

#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

// For `run`, which sees neither default arguments nor overloads.
const auto multiply = [](auto&&... args) { grouped_gemm(args...); };
const auto multiply_all = [](auto&&... args) { gemm(args...); };
const auto pack = [](auto&&... args) { return pack_weight(args...); };

// The numbers of a quantized weight, and their memory.
struct Quantized {
  Quantized(Context& context, const AnyView& w_EFD, Scheme scheme)
      : codes(scheme_info(scheme).weight, code_shape(scheme, w_EFD.shape)),
        scales(DType::kBF16, scale_shape(w_EFD.shape)),
        weight{scheme, w_EFD.shape, codes, scales} {
    Tensor master(DType::kF32, w_EFD.shape);
    for (int64_t i = 0; i < w_EFD.elements(); ++i) set_element(master, i, element(w_EFD, i));
    run(context, quantize_weight, master, weight);
  }
  Tensor codes, scales;
  QuantizedWeight weight;
};

// A weight packed, the memory it is packed in, and what the packing stands for.
struct Packed {
  Packed(Context& context, const AnyView& w_EFD, Scheme scheme, Orientation orientation)
      : value(DType::kF32, w_EFD.shape) {
    const int rank = w_EFD.shape.rank();
    const int64_t f = w_EFD.dim(rank - 2);
    const int64_t d = w_EFD.dim(rank - 1);
    const int64_t experts = rank == 3 ? w_EFD.dim(0) : 1;
    const bool forward = orientation == Orientation::kForward;
    const size_t bytes = packed_bytes(context, scheme, experts, forward ? f : d, forward ? d : f);
    memory = Tensor(DType::kU8, {static_cast<int64_t>(bytes)}, context.device());
    if (scheme_info(scheme).quantized()) {
      const Quantized quantized(context, w_EFD, scheme);
      weight = run(context, pack, quantized.weight, memory.view().data);
      run(context, dequantize_weight, quantized.weight, value);
      return;
    }
    weight = run(context, pack, w_EFD, scheme, orientation, memory.view().data);
    const bool narrow = scheme_info(scheme).weight == DType::kBF16;
    for (int64_t i = 0; i < w_EFD.elements(); ++i) {
      const auto master = static_cast<float>(element(w_EFD, i));
      set_element(value, i, narrow ? static_cast<float>(bf16(master)) : master);
    }
  }
  Tensor memory;
  Tensor value;  // fp32, as w_EFD
  PackedWeight weight;
};

// Random rows of what a scheme multiplies.
struct Rows {
  Rows(Context& context, const SchemeInfo& info, int64_t rows, int64_t inner)
      : type(info.integer_activations() ? DType::kBF16 : info.activation),
        plain(random_tensor(type, {rows, inner}, "x")) {
    if (info.integer_activations()) {
      codes = Tensor(DType::kI8, {rows, scale_groups(inner) * kScaleGroup});
      scales = Tensor(DType::kF32, {rows, scale_groups(inner)});
    }
    refresh(context);
  }
  void refresh(Context& context) {
    if (scales) run(context, quantize_rows, plain, Activation(codes, scales));
  }
  Activation all() const { return scales ? Activation(codes, scales) : Activation(plain); }
  double at(int64_t r, int64_t i) const {
    if (!scales) return element(plain, r * plain.shape()[1] + i);
    return element(codes, r * codes.shape()[1] + i) *
           element(scales, r * scales.shape()[1] + i / kScaleGroup);
  }
  DType type;  // of plain rows, and of products where a test has no reason for another
  Tensor plain, codes, scales;
};

// y[r, o] = sum_i x[r, i] * w(o, i) (+ add), w(o, i) = w_EFD[e, o, i] forward, w_EFD[e, i, o]
// backward.
Expected reference(const Rows& x, const Packed& packed, Orientation orientation,
                   const RowGroups& groups, DType stored, const AnyView& add = {}) {
  Expected expected;
  const int rank = packed.value.shape().rank();
  const int64_t f = packed.value.shape()[rank - 2];
  const int64_t d = packed.value.shape()[rank - 1];
  const bool forward = orientation == Orientation::kForward;
  const int64_t outputs = forward ? f : d;
  const int64_t inner = forward ? d : f;
  for (int64_t e = 0; e < groups.groups(); ++e) {
    for (int64_t r = groups.begin(e); r < groups.end(e); ++r) {
      for (int64_t o = 0; o < outputs; ++o) {
        ReferenceSum sum;
        for (int64_t i = 0; i < inner; ++i) {
          const int64_t at = (e * f + (forward ? o : i)) * d + (forward ? i : o);
          sum.add(x.at(r, i) * element(packed.value, at));
        }
        if (add) sum.add(element(add, r * outputs + o));
        expected.push(sum, stored);
      }
    }
  }
  return expected;
}

// Quantized weights serve forward products only.
std::vector<Orientation> orientations(const SchemeInfo& info) {
  if (info.quantized()) return {Orientation::kForward};
  return {Orientation::kForward, Orientation::kBackward};
}

struct Size {
  int64_t f;
  int64_t d;
};
// Both sides of panels of 8, 16 and 32 outputs, odd inner dimensions, both sides of scale groups,
// and single columns.
constexpr Size kSizes[] = {{1, 1},   {7, 5},   {16, 32},  {33, 17}, {40, 31},
                           {64, 48}, {31, 65}, {17, 127}, {9, 130}, {32, 96}};

TEST_CASE("rows are looked up in a packing as products meet them", "[grouped_gemm]") {
  const std::vector<int32_t> rows = {7, 0, 7, 66, 31, 32};
  for_each_backend([&](Context& context) {
    for (const SchemeInfo& info : kSchemes) {
      for (int64_t width : {1, 31, 64, 129, 200}) {
        INFO("scheme " << info.name << ", width " << width);
        const Tensor w = random_tensor(DType::kF32, {67, width}, "w");
        const Packed packed(context, w, info.scheme, Orientation::kForward);
        for (DType type : {DType::kF32, DType::kBF16}) {
          const Tensor y(type, {static_cast<int64_t>(rows.size()), width});
          run(context, unpack_rows, packed.weight, rows, y);
          int64_t wrong = 0;
          for (int64_t i = 0; i < y.view().elements(); ++i) {
            auto value = static_cast<float>(
                element(packed.value, rows[static_cast<size_t>(i / width)] * width + i % width));
            if (type == DType::kBF16) value = static_cast<float>(bf16(value));
            wrong += element(y, i) != static_cast<double>(value);
          }
          CHECK(wrong == 0);
        }
        const Tensor y(DType::kF32, {1, width});
        CHECK_THROWS_AS(run(context, unpack_rows, packed.weight, std::vector<int32_t>{67}, y),
                        DataError);
      }
    }
  });
}

// `memory` of the context's device, on the host.
std::vector<uint8_t> bytes_of(Context& context, const Tensor& memory) {
  std::vector<uint8_t> out(memory.bytes());
  copy(context, memory, AnyView(View<uint8_t>(out.data(), memory.shape())));
  return out;
}

TEST_CASE("a packing is that of its pieces, one behind the other", "[grouped_gemm]") {
  for_each_backend([](Context& context) {
    for (const SchemeInfo& info : kSchemes) {
      INFO("scheme " << info.name);
      for (const Shape& shape : {Shape{5, 40, 70}, Shape{2 * kPackRows + 33, 70}}) {
        INFO("shape " << shape.str());
        const Tensor w = random_tensor(DType::kF32, shape, "w");
        const Packed whole(context, w, info.scheme, Orientation::kForward);
        const Tensor pieces(DType::kU8, whole.memory.shape(), context.device());
        const int64_t step = shape.rank() == 3 ? 2 : kPackRows;
        for (int64_t first = 0; first < shape[0]; first += step) {
          const AnyView rows = w.view().rows(first, std::min(step, shape[0] - first));
          const Packed piece(context, rows, info.scheme, Orientation::kForward);
          const size_t begin = shape.rank() == 3
                                   ? packed_bytes(context, info.scheme, first, shape[1], shape[2])
                                   : packed_bytes(context, info.scheme, 1, first, shape[1]);
          REQUIRE(begin + piece.memory.bytes() <= pieces.bytes());
          copy(context, piece.memory,
               pieces.view().rows(static_cast<int64_t>(begin), piece.memory.shape()[0]));
        }
        CHECK(bytes_of(context, pieces) == bytes_of(context, whole.memory));
      }
    }
  });
}

TEST_CASE("grouped_gemm agrees with a plain loop over ragged groups", "[grouped_gemm]") {
  for_each_backend([&](Context& context) {
    for (const SchemeInfo& info : kSchemes) {
      for (const auto& counts : ragged_row_counts()) {
        const auto offsets = offsets_of(counts);
        const RowGroups groups{offsets};
        const Size size =
            kSizes[(counts.size() + static_cast<size_t>(groups.rows())) % std::size(kSizes)];
        const Tensor w = random_tensor(DType::kF32, {groups.groups(), size.f, size.d}, "w");
        for (Orientation orientation : orientations(info)) {
          const Packed packed(context, w, info.scheme, orientation);
          const int64_t outputs = packed.weight.outputs;
          const Rows x(context, info, groups.rows(), packed.weight.inner);
          for (DType stored : {DType::kF32, DType::kBF16}) {
            INFO(info.name << " F " << size.f << " D " << size.d << " rows " << groups.rows()
                           << (orientation == Orientation::kForward ? " forward" : " backward"));
            Tensor y(stored, {groups.rows(), outputs});
            fill_nan(y);
            run(context, multiply, x.all(), packed.weight, groups, y);
            check_close("y", y, reference(x, packed, orientation, groups, stored));
            Tensor sum = random_tensor(stored, {groups.rows(), outputs}, "add");
            const Tensor add = copy_of(sum);
            run(context, multiply, x.all(), packed.weight, groups, sum, Epilogue{.add_RF = sum});
            check_close("y + add", sum, reference(x, packed, orientation, groups, stored, add));
          }
        }
      }
    }
  });
}

TEST_CASE("grouped_gemm handles every size around the panels", "[grouped_gemm]") {
  for_each_backend([&](Context& context) {
    const std::vector<int64_t> offsets = {0, 5, 5, 18};
    const RowGroups groups{offsets};
    for (const SchemeInfo& info : kSchemes) {
      for (const Size& size : kSizes) {
        for (DType master : {DType::kF32, DType::kBF16}) {
          const Tensor w = random_tensor(master, {3, size.f, size.d}, "w");
          for (Orientation orientation : orientations(info)) {
            const Packed packed(context, w, info.scheme, orientation);
            const Rows x(context, info, 18, packed.weight.inner);
            INFO(info.name << " F " << size.f << " D " << size.d);
            Tensor y(x.type, {18, packed.weight.outputs});
            run(context, multiply, x.all(), packed.weight, groups, y);
            check_close("y", y, reference(x, packed, orientation, groups, x.type));
          }
        }
      }
    }
  });
}

TEST_CASE("a row's result is the same bits alone, in any tile, on any thread", "[grouped_gemm]") {
  constexpr int64_t kRows = 131;
  const Size sizes[] = {{67, 45}, {96, 64}, {8, 33}, {35, 160}};
  for_each_backend_alone([&](Context& one, auto&& each) {
    for (const SchemeInfo& info : kSchemes) {
      for (const Size& size : sizes) {
        INFO(info.name << " F " << size.f << " D " << size.d);
        const Tensor w = random_tensor(DType::kF32, {size.f, size.d}, "w");
        const Packed packed(one, w, info.scheme, Orientation::kForward);
        const Rows x(one, info, kRows, size.d);
        Tensor single(x.type, {kRows, size.f});
        for (int64_t r = 0; r < kRows; ++r) {
          run(one, multiply_all, x.all().rows(r, 1), packed.weight, single.view().rows(r, 1));
        }
        each([&](Context& context) {
          for (int64_t rows = 1; rows <= kRows; rows += rows < 40 ? 1 : 13) {
            Tensor y(x.type, {rows, size.f});
            run(context, multiply_all, x.all().rows(kRows - rows, rows), packed.weight, y);
            check_same_bits("y of " + std::to_string(rows) + " rows", y,
                            single.view().rows(kRows - rows, rows));
          }
        });
      }
    }
  });
}

// Rows at multiples of 4 KiB take another way through the first-level cache, not to another result.
TEST_CASE("rows a page apart give the bits of single rows", "[grouped_gemm]") {
  constexpr int64_t kRows = 27;
  for_each_backend([&](Context& context) {
    for (const SchemeInfo& info : kSchemes) {
      const int64_t inner = 4096 / static_cast<int64_t>(size_of(info.activation));
      const Tensor w = random_tensor(DType::kF32, {41, inner}, "w");
      const Packed packed(context, w, info.scheme, Orientation::kForward);
      const Rows x(context, info, kRows, inner);
      Tensor single(x.type, {kRows, 41});
      for (int64_t r = 0; r < kRows; ++r) {
        run(context, multiply_all, x.all().rows(r, 1), packed.weight, single.view().rows(r, 1));
      }
      for (int64_t rows : {8, 9, 12, 13, 27}) {
        Tensor y(x.type, {rows, 41});
        run(context, multiply_all, x.all().rows(0, rows), packed.weight, y);
        check_same_bits("y of " + std::to_string(rows) + " rows", y, single.view().rows(0, rows));
      }
    }
  });
}

TEST_CASE("experts give the same bits together, apart and in any grouping", "[grouped_gemm]") {
  constexpr int64_t kF = 70;
  constexpr int64_t kD = 51;
  for_each_backend_alone([&](Context& one, auto&& each) {
    for (const SchemeInfo& info : kSchemes) {
      for (const auto& counts : ragged_row_counts()) {
        const auto offsets = offsets_of(counts);
        const RowGroups groups{offsets};
        const Tensor w = random_tensor(DType::kF32, {groups.groups(), kF, kD}, "w");
        const Rows x(one, info, groups.rows(), kD);
        Tensor apart(x.type, {groups.rows(), kF});
        for (int64_t e = 0; e < groups.groups(); ++e) {
          const Packed packed(one, w.view().rows(e, 1), info.scheme, Orientation::kForward);
          const int64_t rows = groups.end(e) - groups.begin(e);
          run(one, multiply_all, x.all().rows(groups.begin(e), rows), packed.weight,
              apart.view().rows(groups.begin(e), rows));
        }
        each([&](Context& context) {
          INFO(info.name << " rows " << groups.rows());
          const Packed packed(context, w, info.scheme, Orientation::kForward);
          Tensor together(x.type, {groups.rows(), kF});
          run(context, multiply, x.all(), packed.weight, groups, together);
          check_same_bits("y", together, apart);
        });
      }
    }
  });
}

TEST_CASE("large products divided over threads equal one thread's", "[grouped_gemm]") {
  const std::vector<int64_t> counts = {301, 0, 5, 77, 129};
  const auto offsets = offsets_of(counts);
  const RowGroups groups{offsets};
  for_each_backend_alone([&](Context& one, auto&& each) {
    for (const SchemeInfo& info : kSchemes) {
      INFO(info.name);
      const Tensor w = random_tensor(DType::kF32, {groups.groups(), 200, 136}, "w");
      const Rows x(one, info, groups.rows(), 136);
      const Packed packed(one, w, info.scheme, Orientation::kForward);
      Tensor expected(DType::kF32, {groups.rows(), 200});
      run(one, multiply, x.all(), packed.weight, groups, expected);
      // Rows alone, from either end of their group.
      for (int64_t r : {0, 300, 301, 305, 306, 382, 383, 447, 511}) {
        std::vector<int64_t> alone(offsets.size(), 0);
        for (size_t i = 1; i < alone.size(); ++i) alone[i] = r < offsets[i] ? 1 : 0;
        Tensor row(DType::kF32, {1, 200});
        run(one, multiply, x.all().rows(r, 1), packed.weight, RowGroups{alone}, row);
        check_same_bits("row " + std::to_string(r), row, expected.view().rows(r, 1));
      }
      each([&](Context& context) {
        Tensor y(DType::kF32, {groups.rows(), 200});
        fill_nan(y);
        run(context, multiply, x.all(), packed.weight, groups, y);
        check_same_bits("y", y, expected);
      });
    }
  });
}

// On an accelerator the host may know less than the device: an upper bound of each offset.
TEST_CASE("the device's offsets count where the host's are bounds", "[grouped_gemm]") {
  on_gpu([&](Context& gpu) {
    const std::vector<int64_t> exact = {0, 3, 3, 40, 41, 170};
    const std::vector<std::vector<int64_t>> bounds = {
        exact, {0, 300, 300, 300, 300, 300}, {0, 60, 120, 180, 240, 300}};
    Tensor offsets(DType::kI64, {static_cast<int64_t>(exact.size())});
    std::memcpy(offsets.view().data, exact.data(), offsets.bytes());
    Tensor on_device(DType::kI64, offsets.shape(), DeviceType::kCuda);
    copy(gpu, offsets, on_device);
    for (const SchemeInfo& info : kSchemes) {
      INFO(info.name);
      const Tensor w = random_tensor(DType::kF32, {5, 72, 96}, "w");
      const Rows x(gpu, info, 300, 96);
      const Packed packed(gpu, w, info.scheme, Orientation::kForward);
      Tensor expected(DType::kF32, {300, 72});
      fill_nan(expected);
      const Tensor untouched = copy_of(expected);
      run(gpu, multiply, x.all(), packed.weight, RowGroups{exact}, expected);
      for (const auto& bound : bounds) {
        Tensor y = copy_of(untouched);
        const RowGroups groups{bound, on_device.as<int64_t>().data()};
        run(gpu, multiply, x.all(), packed.weight, groups, y);
        check_same_bits("y", y, expected);
      }
    }
  });
}

TEST_CASE("integer schemes give the same bits on every instruction set", "[grouped_gemm]") {
  const std::vector<int64_t> offsets = {0, 13, 13, 40};
  const RowGroups groups{offsets};
  for (const SchemeInfo& info : kSchemes) {
    if (!info.integer_activations()) continue;
    for (const Size& size : kSizes) {
      Context plain(test_options(Isa::kPortable, 1));
      const Tensor w = random_tensor(DType::kF32, {3, size.f, size.d}, "w");
      const Rows x(plain, info, 40, size.d);
      const Packed packed(plain, w, info.scheme, Orientation::kForward);
      Tensor expected(DType::kF32, {40, size.f});
      run(plain, multiply, x.all(), packed.weight, groups, expected);
      for_each_backend([&](Context& context) {
        INFO(info.name << " F " << size.f << " D " << size.d);
        const Rows again(context, info, 40, size.d);
        check_same_bits("codes", again.codes, x.codes);
        check_same_bits("scales", again.scales, x.scales);
        const Packed other(context, w, info.scheme, Orientation::kForward);
        Tensor y(DType::kF32, {40, size.f});
        run(context, multiply, again.all(), other.weight, groups, y);
        check_same_bits("y", y, expected);
      });
    }
  }
}

// The largest codes on both sides everywhere: sums of a group reach their bound, which every
// instruction set must hold exactly.
TEST_CASE("groups of extreme codes are exact", "[grouped_gemm]") {
  constexpr int64_t kD = 64;
  for_each_backend([&](Context& context) {
    for (const SchemeInfo& info : kSchemes) {
      if (!info.integer_activations()) continue;
      Rows x(context, info, 7, kD);
      for (int64_t i = 0; i < 7 * kD; ++i) set_element(x.plain, i, i / kD % 2 ? -127 : 127);
      x.refresh(context);
      Tensor w(DType::kF32, {35, kD});
      const double most = largest_code(info.codes);
      for (int64_t i = 0; i < 35 * kD; ++i) set_element(w, i, i / kD % 3 == 1 ? -most : most);
      const Packed packed(context, w, info.scheme, Orientation::kForward);
      Tensor y(DType::kF32, {7, 35});
      run(context, multiply_all, x.all(), packed.weight, y);
      for (int64_t r = 0; r < 7; ++r) {
        for (int64_t o = 0; o < 35; ++o) {
          const double sign = (r % 2 ? -1 : 1) * (o % 3 == 1 ? -1 : 1);
          CHECK(element(y, r * 35 + o) == sign * 127 * most * kD);
        }
      }
    }
  });
}

TEST_CASE("grouped_gemm leaves rows beyond the groups alone", "[grouped_gemm]") {
  for_each_backend([&](Context& context) {
    const Tensor w = random_tensor(DType::kF32, {2, 40, 24}, "w");
    const Packed packed(context, w, Scheme::kBf16, Orientation::kForward);
    const Tensor x = random_tensor(DType::kBF16, {12, 24}, "x");
    Tensor y = random_tensor(DType::kBF16, {12, 40}, "y");
    const Tensor before = copy_of(y);
    const std::vector<int64_t> offsets = {0, 3, 9};
    run(context, multiply, x, packed.weight, RowGroups{offsets}, y);
    check_same_bits("rows beyond the groups", y.view().rows(9, 3), before.view().rows(9, 3));
    CHECK(first_difference(y.view().rows(8, 1), before.view().rows(8, 1)) >= 0);
  });
}

TEST_CASE("infinities and NaN in one row stay in that row", "[grouped_gemm]") {
  for_each_backend([&](Context& context) {
    for (const SchemeInfo& info : kSchemes) {
      const Tensor w = random_tensor(DType::kF32, {33, 19}, "w");  // odd: the padded pair
      const Packed packed(context, w, info.scheme, Orientation::kForward);
      Rows x(context, info, 14, 19);
      Tensor clean(x.type, {14, 33});
      run(context, multiply_all, x.all(), packed.weight, clean);
      for (int64_t i = 0; i < 19; ++i) {
        set_element(x.plain, 19 * 6 + i, i % 2 ? INFINITY : std::nan(""));
      }
      x.refresh(context);
      Tensor y(x.type, {14, 33});
      run(context, multiply_all, x.all(), packed.weight, y);
      check_same_bits("rows before", y.view().rows(0, 6), clean.view().rows(0, 6));
      check_same_bits("rows after", y.view().rows(7, 7), clean.view().rows(7, 7));
      CHECK(std::isnan(element(y, 33 * 6)));
    }
  });
}

TEST_CASE("grouped_gemm refuses what does not fit", "[grouped_gemm]") {
  Context context(test_options(default_isa(), 1));
  const Tensor w = random_tensor(DType::kF32, {2, 8, 6}, "w");
  Packed packed(context, w, Scheme::kBf16, Orientation::kForward);
  const Tensor x(DType::kBF16, {4, 6});
  const Tensor y(DType::kBF16, {4, 8});
  const std::vector<int64_t> offsets = {0, 2, 4};
  const std::vector<int64_t> three = {0, 1, 2, 4};
  const std::vector<int64_t> decreasing = {0, 3, 2};
  const std::vector<int64_t> beyond = {0, 3, 5};
  const RowGroups groups{offsets};
  CHECK_NOTHROW(grouped_gemm(context, x, packed.weight, groups, y));
  CHECK_THROWS_AS(grouped_gemm(context, x, packed.weight, RowGroups{three}, y), ShapeError);
  CHECK_THROWS_AS(grouped_gemm(context, x, packed.weight, RowGroups{decreasing}, y), ShapeError);
  CHECK_THROWS_AS(grouped_gemm(context, x, packed.weight, RowGroups{beyond}, y), ShapeError);
  CHECK_THROWS_AS(grouped_gemm(context, Tensor(DType::kF32, {4, 6}), packed.weight, groups, y),
                  ShapeError);
  CHECK_THROWS_AS(grouped_gemm(context, Tensor(DType::kBF16, {4, 5}), packed.weight, groups, y),
                  ShapeError);
  CHECK_THROWS_AS(grouped_gemm(context, x, packed.weight, groups, Tensor(DType::kBF16, {3, 8})),
                  ShapeError);
  CHECK_THROWS_AS(
      grouped_gemm(context, x, packed.weight, groups, y, {.add_RF = Tensor(DType::kF32, {4, 8})}),
      ShapeError);
  const Tensor codes(DType::kI8, {4, 32});
  const Tensor scales(DType::kF32, {4, 1});
  CHECK_THROWS_AS(grouped_gemm(context, Activation(codes, scales), packed.weight, groups, y),
                  ShapeError);
  const Packed integer(context, w, Scheme::kW8A8, Orientation::kForward);
  CHECK_NOTHROW(grouped_gemm(context, Activation(codes, scales), integer.weight, groups, y));
  CHECK_THROWS_AS(grouped_gemm(context, x, integer.weight, groups, y), ShapeError);
  CHECK_THROWS_AS(grouped_gemm(context, Activation(codes, Tensor(DType::kF32, {3, 1})),
                               integer.weight, groups, y),
                  ShapeError);
  CHECK_THROWS_AS(
      pack_weight(context, w, Scheme::kW8A8, Orientation::kForward, integer.memory.view().data),
      ShapeError);
  CHECK_THROWS_AS(pack_weight(context, Tensor(DType::kF32, {4}), Scheme::kBf16,
                              Orientation::kForward, packed.memory.view().data),
                  ShapeError);
  packed.weight.isa = packed.weight.isa == Isa::kPortable ? Isa::kAvx2 : Isa::kPortable;
  CHECK_THROWS_AS(grouped_gemm(context, x, packed.weight, groups, y), ShapeError);
}

}  // namespace
}  // namespace degu
