#include "tensor/view.h"

#include <catch2/catch.hpp>
#include <numeric>
#include <vector>

#include "tensor/tensor.h"

namespace {

using degu::AnyView;
using degu::DType;
using degu::Shape;
using degu::View;

TEST_CASE("shapes") {
  CHECK(Shape{}.elements() == 1);
  CHECK(Shape{3, 4, 5}.elements() == 60);
  CHECK(Shape{3, 0}.elements() == 0);
  CHECK(Shape{4096, 512}.str() == "[4096, 512]");
  CHECK(Shape{}.str() == "[]");
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK_FALSE(Shape{2, 3} == Shape{2, 3, 1});
}

TEST_CASE("views index row-major") {
  std::vector<float> data(24);
  std::iota(data.begin(), data.end(), 0.0f);
  const View<float> flat(data.data(), {24});
  const View<float> matrix(data.data(), {4, 6});
  const View<float> cube(data.data(), {2, 3, 4});
  CHECK(flat[7] == 7);
  CHECK(matrix(2, 3) == 15);
  CHECK(matrix.row(2)[3] == 15);
  CHECK(cube(1, 2, 3) == 23);
  CHECK(cube.row(1)[0] == 12);
  const View<const float> read_only = matrix;
  CHECK(read_only(2, 3) == 15);
  matrix(0, 1) = 100;
  CHECK(data[1] == 100);
}

TEST_CASE("untyped views know their type, and give rows of every rank") {
  std::vector<int32_t> data(48);
  std::iota(data.begin(), data.end(), 0);
  for (const Shape& shape : {Shape{48}, Shape{4, 12}, Shape{4, 3, 4}, Shape{4, 3, 2, 2}}) {
    INFO(shape.str());
    const AnyView view(View<int32_t>(data.data(), shape));
    CHECK(view.dtype == DType::kI32);
    CHECK(view.bytes() == 192);
    const int64_t per_row = 48 / shape[0];
    const AnyView part = view.rows(1, 2);
    CHECK(part.shape.rank() == shape.rank());
    CHECK(part.dim(0) == 2);
    CHECK(part.elements() == 2 * per_row);
    CHECK(part.as<int32_t>().data()[0] == per_row);
    CHECK(view.rows(shape[0], 0).elements() == 0);
  }
  CHECK_FALSE(AnyView{});
  CHECK(AnyView(View<int32_t>(data.data(), {48})).reshaped({6, 8}).as<int32_t>()(1, 0) == 8);
}

TEST_CASE("an owning tensor is zeroed, aligned and movable") {
  degu::Tensor tensor(DType::kF32, {3, 5});
  REQUIRE(tensor);
  CHECK(reinterpret_cast<uintptr_t>(tensor.view().data) % 64 == 0);
  for (int64_t i = 0; i < 15; ++i) REQUIRE(tensor.as<float>().data()[i] == 0);
  tensor.as<float>()(2, 4) = 7;
  const void* where = tensor.view().data;
  degu::Tensor moved = std::move(tensor);
  CHECK(moved.view().data == where);
  CHECK(moved.as<float>()(2, 4) == 7);
  CHECK(degu::Tensor(DType::kBF16, {0, 4}).bytes() == 0);
}

}  // namespace
