// The probes: plausible rates, what they count, and that they give their memory back.
#include "kernels/api/probe.h"

#include "tests/support/device_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

TEST_CASE("peak probes give positive finite rates for the types they know", "[probe][long]") {
  for_each_backend([&](Context& context) {
    for (DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
      const double rate = probe_peak_flops(context, type);
      CHECK(rate > 1e8);
      CHECK(rate < 1e16);
    }
    CHECK_THROWS_AS(probe_peak_flops(context, DType::kI64), ShapeError);
  });
}

TEST_CASE("bandwidth probes count updates twice and release their memory", "[probe]") {
  const std::vector<ProbeStream> streams = {{StreamKind::kRead, 1 << 20},
                                            {StreamKind::kUpdate, 1 << 19},
                                            {StreamKind::kWrite, 1 << 18},
                                            {StreamKind::kRead, 100}};
  CHECK(moved_bytes(streams) == (1 << 20) + (1 << 20) + (1 << 18) + 100);
  for_each_backend([&](Context& context) {
    const size_t before = context.scratch().used();
    {
      BandwidthProbe probe(context, streams);
      CHECK(context.scratch().used() > before);
      const double rate = probe.run();
      CHECK(rate > 1e7);
      CHECK(rate < 1e14);
    }
    CHECK(context.scratch().used() == before);
    CHECK_THROWS_AS(BandwidthProbe(context, {}), ShapeError);
  });
}

}  // namespace
}  // namespace degu
