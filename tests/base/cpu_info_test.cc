#include "base/cpu_info.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <string>

#include "base/error.h"

namespace {

// Sets DEGU_ISA for one test and puts the old value back.
class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    if (const char* old = std::getenv("DEGU_ISA")) old_ = old;
    setenv("DEGU_ISA", value, 1);
  }
  ~IsaVariable() { old_.empty() ? unsetenv("DEGU_ISA") : setenv("DEGU_ISA", old_.c_str(), 1); }

 private:
  std::string old_;
};

TEST_CASE("instruction sets have distinct names, and the portable one is always there") {
  CHECK(degu::isa_name(degu::Isa::kPortable) == "portable");
  CHECK(degu::isa_name(degu::Isa::kAvx512Bf16) == "avx512_bf16");
  CHECK(degu::isa_supported(degu::Isa::kPortable));
  // Each set contains the one before it.
  for (size_t i = 1; i < degu::kAllIsas.size(); ++i) {
    if (degu::isa_supported(degu::kAllIsas[i])) CHECK(degu::isa_supported(degu::kAllIsas[i - 1]));
  }
}

TEST_CASE("DEGU_ISA forces a set, and only a possible one") {
  for (degu::Isa isa : degu::kAllIsas) {
    const IsaVariable forced(std::string(degu::isa_name(isa)).c_str());
    if (degu::isa_supported(isa)) {
      CHECK(degu::default_isa() == isa);
    } else {
      CHECK_THROWS_AS(degu::default_isa(), degu::ConfigError);
    }
  }
  const IsaVariable unknown("sse9");
  CHECK_THROWS_WITH(degu::default_isa(),
                    "DEGU_ISA=sse9: unknown; use portable, avx2, avx512 or avx512_bf16");
}

TEST_CASE("without DEGU_ISA the best supported set is taken") {
  const IsaVariable empty("");
  const degu::Isa best = degu::default_isa();
  CHECK(degu::isa_supported(best));
  for (degu::Isa isa : degu::kAllIsas) {
    if (degu::isa_supported(isa)) CHECK(static_cast<int>(isa) <= static_cast<int>(best));
  }
}

TEST_CASE("there is at least one core") {
  CHECK(degu::physical_cores() >= 1);
}

}  // namespace
