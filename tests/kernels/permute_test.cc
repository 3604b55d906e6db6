// Route plans against a plain sort, and the moves between token order and expert order.
#include "kernels/api/permute.h"

#include <algorithm>
#include <tuple>

#include "tests/support/device_testing.h"
#include "tests/support/gradient_check.h"

namespace degu {
namespace {

using namespace degu::testing;

struct PlanCase {
  int64_t tokens, top_k, experts, capacity;
  std::vector<int64_t> groups;
};

// Around the 1,024 tokens of one task, with and without capacity, with empty groups and unused
// experts.
const std::vector<PlanCase>& plan_cases() {
  static const std::vector<PlanCase> kCases = {
      {0, 2, 4, 0, {}},
      {1, 1, 1, 0, {}},
      {13, 3, 8, 0, {}},
      {1023, 2, 8, 0, {}},
      {1025, 2, 5, 0, {}},
      {3000, 4, 64, 0, {}},
      {0, 2, 4, 3, {0}},
      {40, 2, 4, 5, {0, 16, 16, 40}},
      {2100, 2, 8, 100, {0, 700, 1400, 2100}},
      {30, 1, 3, 1, {0, 30}},
      {24, 2, 6, 1000, {0, 12, 24}},
  };
  return kCases;
}

Tensor random_experts(const PlanCase& c) {
  Tensor expert(DType::kI32, {c.tokens, c.top_k});
  const RandomStream stream(5, "experts");
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto first = static_cast<int64_t>(
        stream.below(static_cast<uint64_t>(t), static_cast<uint64_t>(c.experts)));
    for (int64_t k = 0; k < c.top_k;
         ++k) {  // distinct, uneven: expert 0 is skipped half of the time
      expert.as<int32_t>()(t, k) =
          static_cast<int32_t>((first * (t % 2) + k * (1 + t % 2)) % c.experts);
    }
  }
  return expert;
}

struct Plan {
  std::vector<int64_t> offsets;
  Tensor row, token;
  int64_t dropped;
};

Plan plan_of(Context& context, const PlanCase& c, const Tensor& expert) {
  Plan plan{std::vector<int64_t>(static_cast<size_t>(c.experts + 1), -1),
            Tensor(DType::kI32, expert.shape()), Tensor(DType::kI32, {c.tokens * c.top_k}), 0};
  Tensor offsets(DType::kI64, {c.experts + 1}), dropped(DType::kI64, {1});
  run(
      context,
      [&](Context& at, AnyView expert_TK, AnyView offsets_E, AnyView row_TK, AnyView token_R,
          AnyView lost) {
        route_plan(at, expert_TK, c.experts, c.capacity, c.groups, offsets_E, row_TK, token_R,
                   lost);
      },
      expert, offsets, plan.row, plan.token, dropped);
  std::copy_n(offsets.as<int64_t>().data(), c.experts + 1, plan.offsets.begin());
  plan.dropped = dropped.as<int64_t>()[0];
  return plan;
}

TEST_CASE("route_plan is a stable sort by expert that drops the late ones", "[permute]") {
  for_each_backend_and_thread_count([&](Context& context) {
    for (const PlanCase& c : plan_cases()) {
      INFO("tokens " << c.tokens << ", top_k " << c.top_k << ", experts " << c.experts
                     << ", capacity " << c.capacity);
      const Tensor expert = random_experts(c);
      // (expert, token, slot) of what is kept.
      std::vector<std::tuple<int32_t, int64_t, int64_t>> kept;
      std::vector<int64_t> used(static_cast<size_t>(c.experts), 0);
      size_t group = 0;
      for (int64_t t = 0; t < c.tokens; ++t) {
        while (c.capacity > 0 && c.groups[group + 1] <= t) {
          ++group;
          std::fill(used.begin(), used.end(), 0);
        }
        for (int64_t k = 0; k < c.top_k; ++k) {
          const int32_t e = expert.as<int32_t>()(t, k);
          if (c.capacity == 0 || used[static_cast<size_t>(e)]++ < c.capacity)
            kept.emplace_back(e, t, k);
        }
      }
      std::sort(kept.begin(), kept.end());
      Tensor row(DType::kI32, expert.shape());
      for (int64_t i = 0; i < row.view().elements(); ++i) row.as<int32_t>()[i] = -1;
      std::vector<int64_t> offsets(static_cast<size_t>(c.experts + 1), 0);
      for (size_t r = 0; r < kept.size(); ++r) {
        const auto [e, t, k] = kept[r];
        row.as<int32_t>()(t, k) = static_cast<int32_t>(r);
        ++offsets[static_cast<size_t>(e) + 1];
      }
      for (size_t e = 0; e < static_cast<size_t>(c.experts); ++e) offsets[e + 1] += offsets[e];
      const Plan plan = plan_of(context, c, expert);
      CHECK(plan.dropped == c.tokens * c.top_k - static_cast<int64_t>(kept.size()));
      CHECK(plan.offsets == offsets);
      check_same_bits("row_TK", plan.row, row);
      int64_t wrong = 0;
      for (size_t r = 0; r < kept.size(); ++r)
        wrong += plan.token.as<int32_t>()[static_cast<int64_t>(r)] != std::get<1>(kept[r]);
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("unit_offsets finds where each unit's rows begin", "[permute]") {
  for_each_backend([&](Context& context) {
    for (const PlanCase& c : plan_cases()) {
      const Plan plan = plan_of(context, c, random_experts(c));
      Tensor offsets(DType::kI64, {c.experts + 1});
      std::copy_n(plan.offsets.begin(), c.experts + 1, offsets.as<int64_t>().data());
      for (const std::vector<int64_t>& units :
           {std::vector<int64_t>{0, c.tokens},
            std::vector<int64_t>{0, c.tokens / 3, c.tokens / 3, c.tokens}}) {
        const auto count = static_cast<int64_t>(units.size()) - 1;
        Tensor by_unit(DType::kI64, {c.experts * count + 1});
        run(
            context,
            [&](Context& at, AnyView offsets_E, AnyView token_R, AnyView offsets_EU) {
              unit_offsets(at, offsets_E, token_R, units, offsets_EU);
            },
            offsets, plan.token, by_unit);
        const View<const int64_t> begin = by_unit.as<int64_t>();
        CHECK(begin[0] == 0);
        CHECK(begin[c.experts * count] == plan.offsets.back());
        int64_t wrong = 0;
        for (int64_t i = 0; i < c.experts * count; ++i) {
          const auto unit = static_cast<size_t>(i % count);
          wrong += begin[i] > begin[i + 1];
          wrong += unit == 0 && begin[i] != plan.offsets[static_cast<size_t>(i / count)];
          for (int64_t r = begin[i]; r < begin[i + 1]; ++r) {
            const int32_t token = plan.token.as<int32_t>()[r];
            wrong += token < units[unit] || token >= units[unit + 1];
          }
        }
        CHECK(wrong == 0);
      }
    }
  });
}

TEST_CASE("renumber looks numbers up", "[permute]") {
  const std::vector<int32_t> number = {7, -1, 4, 4};
  for_each_backend([&](Context& context) {
    for (int64_t n : {0, 1, 300, 5000}) {
      Tensor index(DType::kI32, {n}), out(DType::kI32, {n}), expected(DType::kI32, {n});
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i * 7 % 4);
        index.as<int32_t>()[i] = static_cast<int32_t>(at);
        expected.as<int32_t>()[i] = number[at];
      }
      run(
          context, [&](Context& at, AnyView from, AnyView to) { renumber(at, from, number, to); },
          index, out);
      check_same_bits("out", out, expected);
    }
  });
}

TEST_CASE("interleave_rows sorts arrived rows by expert, source and unit", "[permute]") {
  struct Case {
    int64_t sources, experts, units;
  };
  const Case cases[] = {{1, 1, 1}, {2, 3, 1}, {4, 2, 5}, {3, 4, 2}};
  for_each_backend([&](Context& context) {
    for (const Case& c : cases) {
      const RandomStream stream(3, "counts");
      std::vector<int64_t> counts;
      // Every row as it arrives, with what it is sorted by.
      std::vector<std::tuple<int64_t, int64_t, int64_t, int32_t>> rows;
      for (int64_t p = 0; p < c.sources; ++p) {
        for (int64_t e = 0; e < c.experts; ++e) {
          for (int64_t u = 0; u < c.units; ++u) {
            const auto count = static_cast<int64_t>(stream.below(counts.size(), 4) * 150);
            counts.push_back(count);
            for (int64_t i = 0; i < count; ++i) {
              rows.emplace_back(e, p, u, static_cast<int32_t>(rows.size()));
            }
          }
        }
      }
      std::sort(rows.begin(), rows.end());
      const auto n = static_cast<int64_t>(rows.size());
      Tensor order(DType::kI32, {n}), place(DType::kI32, {n});
      run(
          context,
          [&](Context& at, AnyView order_R, AnyView place_R) {
            interleave_rows(at, counts, c.experts, c.units, order_R, place_R);
          },
          order, place);
      int64_t wrong = 0;
      for (int64_t r = 0; r < n; ++r) {
        const int32_t arrived = std::get<3>(rows[static_cast<size_t>(r)]);
        wrong += order.as<int32_t>()[r] != arrived;
        wrong += place.as<int32_t>()[arrived] != static_cast<int32_t>(r);
      }
      CHECK(wrong == 0);
    }
  });
}

struct Problem {
  Problem(Context& context, const PlanCase& c, DType type, int64_t width)
      : plan(plan_of(context, c, random_experts(c))),
        rows(plan.offsets.back()),
        x(random_tensor(type, {rows, width}, "x")),
        gate(random_tensor(DType::kF32, {c.tokens, c.top_k}, "gate")),
        add(random_tensor(type, {c.tokens, width}, "add")),
        dy(random_tensor(type, {c.tokens, width}, "dy")) {}
  Plan plan;
  int64_t rows;
  Tensor x, gate, add, dy;
};

TEST_CASE("gather_rows copies rows", "[permute]") {
  for_each_backend([&](Context& context) {
    for (const PlanCase& c : plan_cases()) {
      for (DType type : {DType::kF32, DType::kBF16}) {
        for (int64_t width : {1, 9, 64}) {
          const Problem p(context, c, type, width);
          Tensor y(type, {p.rows, width}), expected(type, {p.rows, width});
          for (int64_t i = 0; i < p.rows * width; ++i) {
            set_element(expected, i,
                        element(p.dy, p.plan.token.as<int32_t>()[i / width] * width + i % width));
          }
          run(context, gather_rows, p.dy, p.plan.token.view().rows(0, p.rows), y);
          check_same_bits("y", y, expected);
        }
      }
    }
  });
}

TEST_CASE("combine and its gradient agree with a plain loop", "[permute]") {
  for_each_backend([&](Context& context) {
    for (const PlanCase& c : plan_cases()) {
      INFO("tokens " << c.tokens << ", top_k " << c.top_k << ", capacity " << c.capacity);
      for (DType type : {DType::kF32, DType::kBF16}) {
        for (int64_t width : {1, 9, 33, 64}) {
          const Problem p(context, c, type, width);
          const View<int32_t> row = p.plan.row.as<int32_t>();
          Tensor y(type, {c.tokens, width}), y_plain(type, {c.tokens, width});
          Tensor dx(type, {p.rows, width}), dgate(DType::kF32, {c.tokens, c.top_k});
          for (const Tensor* each : {&y, &y_plain, &dx}) fill_nan(*each);
          run(context, combine, p.x, p.plan.row, p.gate, p.add, y);
          run(context, combine, p.x, p.plan.row, AnyView{}, AnyView{}, y_plain);
          run(context, combine_backward, p.dy, p.x, p.plan.row, p.gate, dx, dgate);
          Expected ey, ep, eg;
          Expected ex{std::vector<double>(static_cast<size_t>(p.rows * width)),
                      std::vector<double>(static_cast<size_t>(p.rows * width))};
          for (int64_t t = 0; t < c.tokens; ++t) {
            for (int64_t d = 0; d < width; ++d) {
              ReferenceSum sum, plain;
              sum.add(element(p.add, t * width + d));
              for (int64_t k = 0; k < c.top_k; ++k) {
                if (row(t, k) < 0) continue;
                const double g = p.gate.as<float>()(t, k);
                const int64_t at = row(t, k) * width + d;
                sum.add(g * element(p.x, at));
                plain.add(element(p.x, at));
                const double v = g * element(p.dy, t * width + d);
                ex.value[static_cast<size_t>(at)] = v;
                ex.tolerance[static_cast<size_t>(at)] =
                    unit_roundoff(type) * 1.01 * std::fabs(v) + 0x1p-126;
              }
              ey.push(sum, type);
              ep.push(plain, type);
            }
            for (int64_t k = 0; k < c.top_k; ++k) {
              ReferenceSum dot;
              for (int64_t d = 0; d < width && row(t, k) >= 0; ++d) {
                dot.add(element(p.dy, t * width + d) * element(p.x, row(t, k) * width + d));
              }
              eg.push(dot, DType::kF32);
            }
          }
          check_close("y", y, ey);
          check_close("y without gates", y_plain, ep);
          check_close("dx", dx, ex);
          check_close("dgate", dgate, eg);
          for (int64_t i = 0; i < dgate.view().elements(); ++i) {
            if (row[i] < 0) CHECK(element(dgate, i) == 0);
          }
          Tensor carried = copy_of(p.add);
          run(context, combine, p.x, p.plan.row, p.gate, carried, carried);
          check_same_bits("y added in place", carried, y);
        }
      }
    }
  });
}

TEST_CASE("combine_backward is the derivative of combine", "[permute]") {
  for_each_backend([&](Context& context) {
    const PlanCase c{7, 2, 4, 3, {0, 7}};
    const int64_t width = 5;
    const Problem p(context, c, DType::kF32, width);
    REQUIRE(p.plan.dropped > 0);
    Tensor dx(DType::kF32, {p.rows, width}), dgate(DType::kF32, {c.tokens, c.top_k});
    run(context, combine_backward, p.dy, p.x, p.plan.row, p.gate, dx, dgate);
    const auto weight = values_of(p.dy);
    const View<int32_t> row = p.plan.row.as<int32_t>();
    const auto objective = [&](const std::vector<double>& x, const std::vector<double>& gate) {
      double sum = 0;
      for (int64_t i = 0; i < c.tokens * c.top_k; ++i) {
        for (int64_t d = 0; d < width && row[i] >= 0; ++d) {
          sum += weight[static_cast<size_t>(i / c.top_k * width + d)] *
                 gate[static_cast<size_t>(i)] * x[static_cast<size_t>(row[i] * width + d)];
        }
      }
      return sum;
    };
    check_gradient(
        "dx", dx, [&](const auto& at) { return objective(at, values_of(p.gate)); }, values_of(p.x));
    check_gradient(
        "dgate", dgate, [&](const auto& at) { return objective(values_of(p.x), at); },
        values_of(p.gate));
  });
}

TEST_CASE("combine gives the same bits on any number of threads and at any size", "[permute]") {
  const int64_t width = 1024;
  const PlanCase c{
      (int64_t{16} << 20) / 2 / width + 3, 2, 8, 0, {}};  // y past the size that is streamed
  Context planner(test_options(default_isa(), 1));
  const Problem p(planner, c, DType::kBF16, width);
  for (Isa isa : supported_isas()) {
    Tensor first_y, first_dx, first_dgate;
    for_each_thread_count(isa, [&](Context& context) {
      Tensor y(DType::kBF16, {c.tokens, width}), dx(DType::kBF16, {p.rows, width});
      Tensor dgate(DType::kF32, {c.tokens, c.top_k}), gathered(DType::kBF16, {p.rows, width});
      run(context, combine, p.x, p.plan.row, p.gate, p.add, y);
      run(context, combine_backward, p.dy, p.x, p.plan.row, p.gate, dx, dgate);
      run(context, gather_rows, p.dy, p.plan.token, gathered);
      if (!first_y) {
        first_y = copy_of(y);
        first_dx = copy_of(dx);
        first_dgate = copy_of(dgate);
      }
      check_same_bits("y", y, first_y);
      check_same_bits("dx", dx, first_dx);
      check_same_bits("dgate", dgate, first_dgate);
      const int64_t last = c.tokens - 1;
      Tensor alone(DType::kBF16, {1, width});
      run(context, combine, p.x, p.plan.row.view().rows(last, 1), p.gate.view().rows(last, 1),
          p.add.view().rows(last, 1), alone);
      check_same_bits("the last token alone", y.view().rows(last, 1), alone);
      int64_t wrong = 0;
      for (int64_t r = 0; r < p.rows; ++r) {
        wrong += first_difference(gathered.view().rows(r, 1),
                                  p.dy.view().rows(p.plan.token.as<int32_t>()[r], 1)) >= 0;
      }
      CHECK(wrong == 0);
    });
  }
}

TEST_CASE("permute operators name what does not fit", "[permute]") {
  Context context(test_options(default_isa(), 1));
  Tensor expert(DType::kI32, {2, 2}), row(DType::kI32, {2, 2}), token(DType::kI32, {4});
  Tensor offsets(DType::kI64, {4}), dropped(DType::kI64, {1});
  expert.as<int32_t>()[3] = 3;
  CHECK_THROWS_WITH(route_plan(context, expert, 3, 0, {}, offsets, row, token, dropped),
                    Catch::Contains("expert_TK[3] is 3, must be in [0, 3)"));
  expert.as<int32_t>()[3] = 2;
  const std::vector<int64_t> groups = {0, 1};
  CHECK_THROWS_AS(route_plan(context, expert, 3, 1, groups, offsets, row, token, dropped),
                  ShapeError);
  CHECK_THROWS_AS(route_plan(context, expert, 4, 0, {}, offsets, row, token, dropped), ShapeError);
  CHECK_THROWS_AS(unit_offsets(context, offsets, token, std::vector<int64_t>{0}, dropped),
                  ShapeError);
  CHECK_THROWS_AS(unit_offsets(context, offsets, token, std::vector<int64_t>{0, 2}, dropped),
                  ShapeError);
  const std::vector<int32_t> number = {1, 2};
  token.as<int32_t>()[1] = 2;
  CHECK_THROWS_AS(renumber(context, token, number, token), ShapeError);
  const std::vector<int64_t> counts = {1, 2, 1};
  CHECK_THROWS_AS(interleave_rows(context, counts, 2, 1, token, token), ShapeError);
  CHECK_THROWS_AS(interleave_rows(context, counts, 1, 1, row.view().rows(0, 1), token), ShapeError);
  Tensor x(DType::kF32, {3, 8}), y(DType::kF32, {4, 8});
  token.as<int32_t>()[1] = 3;
  CHECK_THROWS_AS(gather_rows(context, x, token, y), ShapeError);
  row.as<int32_t>()[0] = -2;
  CHECK_THROWS_AS(combine(context, x, row, AnyView{}, AnyView{}, y.view().rows(0, 2)), ShapeError);
}

}  // namespace
}  // namespace degu
