// Reads a configuration and counts its parameters with the installed headers and libraries.
#include <cstdio>

#include "config/yaml.h"
#include "shape/accounting.h"
#include "tensor/context.h"
#include "tensor/tensor.h"

int main() {
  const auto document =
      degu::YamlDocument::from_text("width: 96\nheads: 3\nvocab: 1000\n", "inline");
  const auto shape = degu::read_config<degu::ModelShape>(document);
  degu::Context context({.threads = 2});
  degu::Tensor squares(degu::DType::kI64, {10});
  context.parallel_for(10, [&](int64_t i, int) { squares.as<int64_t>()[i] = i * i; });
  std::printf("parameters %lld, last %lld\n",
              static_cast<long long>(degu::parameter_count(shape, degu::ParameterCount::kTotal)),
              static_cast<long long>(squares.as<int64_t>()[9]));
  return 0;
}
