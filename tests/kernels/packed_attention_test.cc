// cuDNN's attention against the definition where there is a GPU, and cuDNN's own word, without one,
// that it has plans for what training asks for.
#include "kernels/api/packed_attention.h"

#include "tests/kernels/attention_testing.h"

namespace degu::testing {
namespace {

// Why this machine's cuDNN cannot be loaded; empty when it can.
std::string unusable(Context& context) {
  Tensor q(DType::kBF16, {1, 1, 32}, DeviceType::kCuda),
      lse(DType::kF32, {1, 1}, DeviceType::kCuda);
  const std::vector<int64_t> offsets = {0, 1}, first = {0};
  try {
    packed_attention(context, q, q, q, {offsets, first}, 1, q, lse);
  } catch (const DeviceError& error) {
    if (std::string_view(error.what()).find("install cuDNN") != std::string_view::npos) {
      return error.what();
    }
    throw;
  }
  return {};
}

TEST_CASE("packed_attention agrees with the definition in double precision", "[attention]") {
  if (!packed_attention_built()) {
    WARN("skipped: this build has no cuDNN");
    return;
  }
  if (!has_gpu()) return;
  Context context({.threads = 1, .scratch_bytes = size_t{1} << 28, .device = DeviceType::kCuda});
  if (const std::string why = unusable(context); !why.empty()) {
    WARN("skipped: " << why);
    return;
  }
  for (const Shapes& shapes : {Shapes{4, 2, 64}, Shapes{2, 2, 128}, Shapes{3, 1, 32}}) {
    for (const std::vector<int64_t>& lengths :
         std::vector<std::vector<int64_t>>{{1}, {15, 16, 17}, {63, 1, 64, 65, 130}, {300, 31}}) {
      INFO("H " << shapes.heads << ", G " << shapes.kv_heads << ", A " << shapes.width
                << ", first length " << lengths[0]);
      const Ragged ragged(lengths);
      const Inputs in(DType::kBF16, shapes, ragged.rows());
      Outputs got(DType::kBF16, shapes, ragged.rows());
      run(
          context,
          [&](Context& at, AnyView q, AnyView k, AnyView v, AnyView out, AnyView lse) {
            packed_attention(at, q, k, v, ragged.sequences(), in.scale, out, lse);
          },
          in.q, in.k, in.v, got.out, got.lse);
      run(
          context,
          [&](Context& at, AnyView q, AnyView k, AnyView v, AnyView out, AnyView lse, AnyView dout,
              AnyView dq, AnyView dk, AnyView dv) {
            packed_attention_backward(at, q, k, v, ragged.sequences(), in.scale, out, lse, dout, dq,
                                      dk, dv);
          },
          in.q, in.k, in.v, got.out, got.lse, in.dout, got.dq, got.dk, got.dv);
      const ExpectedAll expected = expect(shapes, in, ragged);
      check_close("out", got.out, expected.out.expected);
      check_close("lse", got.lse, expected.lse.expected);
      check_close("dq", got.dq, expected.dq.expected);
      check_close("dk", got.dk, expected.dk.expected);
      check_close("dv", got.dv, expected.dv.expected);
    }
  }
}

TEST_CASE("packed_attention says what it needs", "[attention]") {
  Context context(test_options(default_isa(), 1));
  const Shapes shapes{2, 1, 16};
  const Ragged ragged({3, 2});
  const Inputs in(DType::kBF16, shapes, 5);
  Outputs got(DType::kBF16, shapes, 5);
  const auto call = [&](const Sequences& sequences, const Tensor& keys) {
    packed_attention(context, in.q, keys, in.v, sequences, in.scale, got.out, got.lse);
  };
  CHECK_THROWS_AS(call(ragged.sequences(), in.k), DeviceError);  // the CPU has no such thing
  CHECK_THROWS_WITH(call(ragged.sequences(), in.k), Catch::Contains("train.attention"));
  CHECK_THROWS_AS(call(ragged.sequences(), in.q), ShapeError);
  CHECK_THROWS_AS(call(Ragged({3, 1}).sequences(), in.k), ShapeError);
  const std::vector<int64_t> late = {0, 7};
  CHECK_THROWS_AS(call({ragged.offsets, late}, in.k), ShapeError);
}

}  // namespace
}  // namespace degu::testing
