// Every case of `degu bench kernels` at a thousandth of its size, and the profile that it writes.
#include "cli/kernel_bench.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "config/yaml.h"
#include "tests/support/kernel_testing.h"

namespace degu {
namespace {

using namespace degu::testing;

TEST_CASE("every benchmark case runs and gives a rate", "[bench]") {
  Context context(test_options(default_isa(), 2));
  std::set<std::string> seen;
  for (std::span<const MakeCase> cases : {compute_cases(), scheme_cases(), memory_cases()}) {
    CHECK(!cases.empty());
    for (MakeCase make : cases) {
      const KernelCase kernel = make(context, 0.001);
      INFO(kernel.name << " " << kernel.shape);
      CHECK(seen.insert(kernel.name + kernel.shape).second);
      CHECK((kernel.bound == Bound::kMemory) == !kernel.streams.empty());
      CHECK((kernel.bound == Bound::kMemory) == (kernel.work == 0));
      const size_t used = context.scratch().used();
      kernel.run(context);
      CHECK(context.scratch().used() == used);
    }
  }
  const KernelRate rate = measure(context, memory_cases()[0](context, 0.001), 3);
  CHECK(rate.rate > 0);
  CHECK(rate.peak > 0);
  CHECK(rate.ratio > 0);
  CHECK(rate.peak_spread >= 1);
}

TEST_CASE("a hardware profile is measured, written and read back", "[bench]") {
  Context context(test_options(default_isa(), 1));
  HardwareProfile profile = measure_hardware(context);
  profile.check();
  CHECK(profile.threads == 1);
  CHECK(profile.isa == isa_name(default_isa()));
  const auto path = std::filesystem::temp_directory_path() /
                    fmt::format("degu_hardware_{}.yaml", static_cast<const void*>(&context));
  std::ofstream(path) << to_yaml(profile);
  const HardwareProfile read = load_hardware(path.string());
  CHECK(to_yaml(read) == to_yaml(profile));
  CHECK(read.bf16_flops == profile.bf16_flops);
  std::ofstream(path) << "cpu: x\nthreads: 2\nfp32_flops: 0\n";
  CHECK_THROWS_WITH(load_hardware(path.string()), Catch::Contains("fp32_flops is 0"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace degu
