#include "kernels/api/attention.h"

#include "tests/kernels/attention_testing.h"

namespace degu::testing {
namespace {

const std::vector<Shapes> kShapes = {
    {1, 1, 16}, {2, 1, 32}, {4, 2, 64}, {2, 2, 96},  {1, 1, 128},
    {3, 1, 24}, {2, 1, 10}, {2, 2, 7},  {20, 1, 16}, {2, 1, 200},
};
const std::vector<std::vector<int64_t>> kLengths = {
    {1}, {2, 0, 3}, {15, 16, 17}, {63, 0, 64, 65}, {130, 31}, {0},
};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

TEST_CASE("attention and its gradients agree with the definition in double precision",
          "[attention]") {
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      for (const Shapes& shapes : kShapes) {
        for (const auto& lengths : kLengths) {
          INFO(dtype_name(type) << ", H " << shapes.heads << ", G " << shapes.kv_heads << ", A "
                                << shapes.width << ", first length " << lengths[0]);
          const Ragged ragged(lengths);
          const Inputs in(type, shapes, ragged.rows());
          const Outputs got = run_all(context, shapes, in, ragged);
          const ExpectedAll expected = expect(shapes, in, ragged);
          check_close("out", got.out, expected.out.expected);
          check_close("lse", got.lse, expected.lse.expected);
          check_close("dq", got.dq, expected.dq.expected);
          check_close("dk", got.dk, expected.dk.expected);
          check_close("dv", got.dv, expected.dv.expected);
        }
      }
    }
  });
}

TEST_CASE("the reference gradient of attention is the slope of the reference", "[attention]") {
  const int64_t n = 9;
  const int64_t width = 6;
  const Shapes shapes{1, 1, width};
  const Inputs in(DType::kF32, shapes, n);
  std::vector<double> x[3] = {doubles(in.q), doubles(in.k), doubles(in.v)};
  const auto dout = doubles(in.dout);
  HeadReference ref{.n = n, .width = width, .scale = 0.4};
  ref.forward(x[0], x[1], x[2]);
  ref.backward(x[0], x[1], x[2], dout);
  const std::vector<double> gradients[3] = {ref.dq, ref.dk, ref.dv};
  const auto objective = [&] {
    HeadReference moved{.n = n, .width = width, .scale = 0.4};
    moved.forward(x[0], x[1], x[2]);
    return std::inner_product(dout.begin(), dout.end(), moved.out.begin(), 0.0);
  };
  for (size_t which = 0; which < 3; ++which) {
    for (size_t i = 0; i < x[which].size(); ++i) {
      const double h = 1e-5;
      const double kept = x[which][i];
      x[which][i] = kept + h;
      const double above = objective();
      x[which][i] = kept - h;
      const double below = objective();
      x[which][i] = kept;
      CHECK(gradients[which][i] == Approx((above - below) / (2 * h)).epsilon(1e-6).margin(1e-8));
    }
  }
}

TEST_CASE("attention gives the same bits for any number of threads", "[attention]") {
  const Shapes shapes{4, 2, 32};
  const Ragged ragged({130, 1, 64, 77});
  for (Isa isa : supported_isas()) {
    for (DType type : kTypes) {
      const Inputs in(type, shapes, ragged.rows());
      Context one(test_options(isa, 1));
      const Outputs expected = run_all(one, shapes, in, ragged);
      for_each_thread_count(isa, [&](Context& context) {
        check_same_outputs(run_all(context, shapes, in, ragged), expected);
      });
    }
  }
}

TEST_CASE("a sequence's attention does not depend on its neighbours", "[attention]") {
  const Shapes shapes{4, 2, 64};
  const std::vector<int64_t> lengths = {70, 3, 0, 129};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Ragged ragged(lengths);
      const Inputs in(type, shapes, ragged.rows());
      const Outputs together = run_all(context, shapes, in, ragged);
      for (size_t s = 0; s < lengths.size(); ++s) {
        const int64_t first = ragged.offsets[s];
        const int64_t n = lengths[s];
        if (n == 0) continue;
        Inputs alone(type, shapes, n);
        alone.q = part_of(in.q, first, n);
        alone.k = part_of(in.k, first, n);
        alone.v = part_of(in.v, first, n);
        alone.dout = part_of(in.dout, first, n);
        const Outputs got = run_all(context, shapes, alone, Ragged({n}));
        check_same_bits("out", got.out, together.out.view().rows(first, n));
        check_same_bits("lse", got.lse, together.lse.view().rows(first, n));
        check_same_bits("dq", got.dq, together.dq.view().rows(first, n));
        check_same_bits("dk", got.dk, together.dk.view().rows(first, n));
        check_same_bits("dv", got.dv, together.dv.view().rows(first, n));
      }
    }
  });
}

// Feeds two sequences through the pages in chunks of at most `chunk` rows each.
Outputs in_chunks(Context& context, const Shapes& shapes, const Inputs& in,
                  const std::vector<int64_t>& lengths, int64_t chunk, bool reversed) {
  const DType type = in.q.dtype();
  const Ragged whole(lengths, {}, reversed);
  Pages pages(context, type, shapes, whole);
  Outputs got(type, shapes, whole.rows());
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  for (int64_t start = 0; start < longest; start += chunk) {
    for (size_t s = 0; s < lengths.size(); ++s) {
      const int64_t n = std::min(chunk, lengths[s] - start);
      if (n <= 0) continue;
      std::vector<int64_t> counts(lengths.size(), 0);
      std::vector<int64_t> starts(lengths.size(), start);
      counts[s] = n;
      const auto offsets = offsets_of(counts);
      const Sequences step{offsets, starts};
      const int64_t row = whole.offsets[s] + start;
      run(context, kv_store, in.k.view().rows(row, n), in.v.view().rows(row, n), step, pages.view);
      run(context, attention, in.q.view().rows(row, n), pages.view, step, in.scale,
          got.out.view().rows(row, n), got.lse.view().rows(row, n));
    }
  }
  return got;
}

TEST_CASE("prefill in one go, in chunks and token by token gives the same bits", "[attention]") {
  const std::vector<int64_t> lengths = {150, 67};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      for (const Shapes& shapes : {Shapes{4, 1, 32}, Shapes{2, 2, 10}, Shapes{3, 1, 7}}) {
        const Ragged ragged(lengths);
        const Inputs in(type, shapes, ragged.rows());
        const Outputs expected = run_all(context, shapes, in, ragged);
        for (int64_t chunk : {1, 7, 16, 63, 64, 65, 100}) {
          INFO("chunk " << chunk << ", " << dtype_name(type) << ", A " << shapes.width);
          const Outputs got = in_chunks(context, shapes, in, lengths, chunk, chunk % 2 == 0);
          check_same_bits("out", got.out, expected.out);
          check_same_bits("lse", got.lse, expected.lse);
        }
      }
    }
  });
}

// Positions on both sides of the cuts that kernels make along the keys, alone and as one batch of
// more sequences than a GPU has room for at once: however the work is shared, each row has the bits
// of the prefill.
TEST_CASE("a query far into its sequence has the same bits alone and in any company",
          "[attention]") {
  const int64_t length = 1150;
  const Ragged ragged({length});
  std::vector<int64_t> positions = {0, 63, 64, 510, 511, 512, 513, 575, 1023, 1024, 1025, 1149};
  const size_t alone = positions.size();
  for (int64_t p = 1; p < length; p += 4) positions.push_back(p);
  const auto count = static_cast<int64_t>(positions.size());
  for (const Shapes& shapes : {Shapes{2, 1, 16}, Shapes{5, 1, 8}}) {
    for (DType type : kTypes) {
      const Inputs in(type, shapes, length);
      const ExpectedAll expected = expect(shapes, in, ragged);
      for_each_backend([&](Context& context) {
        INFO(dtype_name(type) << ", width " << shapes.width);
        const Outputs whole = run_all(context, shapes, in, ragged);
        check_close("out", whole.out, expected.out.expected);
        check_close("lse", whole.lse, expected.lse.expected);
        check_close("dq", whole.dq, expected.dq.expected);
        check_close("dk", whole.dk, expected.dk.expected);
        check_close("dv", whole.dv, expected.dv.expected);
        Pages pages(context, type, shapes, ragged);
        run(context, kv_store, in.k, in.v, ragged.sequences(), pages.view);
        Tensor q(type, {count, shapes.heads, shapes.width});
        Tensor wanted(type, q.shape()), out(type, q.shape());
        std::vector<int32_t> table;  // every sequence reads the same pages
        for (int64_t i = 0; i < count; ++i) {
          const int64_t p = positions[static_cast<size_t>(i)];
          std::memcpy(q.view().rows(i, 1).data, in.q.view().rows(p, 1).data,
                      q.view().rows(i, 1).bytes());
          std::memcpy(wanted.view().rows(i, 1).data, whole.out.view().rows(p, 1).data,
                      q.view().rows(i, 1).bytes());
          table.insert(table.end(), ragged.table.begin(), ragged.table.end());
        }
        const auto offsets = offsets_of(std::vector<int64_t>(positions.size(), 1));
        KvView shared = pages.view;
        shared.table = table;
        run(context, attention, q, shared, Sequences{offsets, positions}, in.scale, out, AnyView{});
        check_same_bits("in company", out, wanted);
        fill_nan(out);
        const Resident batch(context, {offsets, positions}, shared);
        run(context, attention, q, batch.kv, batch.sequences, in.scale, out, AnyView{});
        check_same_bits("in company, the device has the positions", out, wanted);
        fill_nan(out);
        for (size_t i = 0; i < alone; ++i) {
          const std::vector<int64_t> one = {0, 1}, first = {positions[i]};
          const auto row = static_cast<int64_t>(i);
          run(context, attention, q.view().rows(row, 1), pages.view, Sequences{one, first},
              in.scale, out.view().rows(row, 1), AnyView{});
          check_same_bits("alone", out.view().rows(row, 1), wanted.view().rows(row, 1));
          const Resident there(context, {one, first}, pages.view);
          run(context, attention, q.view().rows(row, 1), there.kv, there.sequences, in.scale,
              out.view().rows(row, 1), AnyView{});
          check_same_bits("alone, the device has the position", out.view().rows(row, 1),
                          wanted.view().rows(row, 1));
        }
        const std::vector<int64_t> some = {0, 130}, start = {length - 130};
        Tensor last(type, {130, shapes.heads, shapes.width});
        run(context, attention, in.q.view().rows(length - 130, 130), pages.view,
            Sequences{some, start}, in.scale, last, AnyView{});
        check_same_bits("a chunk", last, whole.out.view().rows(length - 130, 130));
      });
    }
  }
}

TEST_CASE("positions and pages may be the device's alone", "[attention]") {
  const Shapes shapes{3, 1, 24};
  const std::vector<int64_t> lengths = {90, 0, 1, 66, 130}, starts = {40, 7, 63, 63, 640};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Ragged ragged(lengths, starts, true);
      const Inputs in(type, shapes, ragged.rows());
      const Sequences sequences = ragged.sequences();
      Pages here(context, type, shapes, ragged), there(context, type, shapes, ragged);
      Outputs expected(type, shapes, ragged.rows()), got(type, shapes, ragged.rows());
      run(context, kv_store, in.k, in.v, sequences, here.view);
      run(context, attention, in.q, here.view, sequences, in.scale, expected.out, expected.lse);
      const Resident resident(context, sequences, there.view);
      run(context, kv_store, in.k, in.v, resident.sequences, resident.kv);
      run(context, attention, in.q, resident.kv, resident.sequences, in.scale, got.out, got.lse);
      check_same_bits("pages", there.on_host(context), here.on_host(context));
      check_same_bits("out", got.out, expected.out);
      check_same_bits("lse", got.lse, expected.lse);
    }
  });
}

TEST_CASE("page placement leaves no trace in attention", "[attention]") {
  const Shapes shapes{4, 2, 64};
  const std::vector<int64_t> lengths = {200, 65};
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Ragged in_order(lengths);
      const Inputs in(type, shapes, in_order.rows());
      check_same_outputs(run_all(context, shapes, in, Ragged(lengths, {}, true)),
                         run_all(context, shapes, in, in_order));
    }
  });
}

TEST_CASE("storing keys touches nothing else of a page", "[attention]") {
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Shapes shapes{2, 2, 10};
      const Ragged whole({100});
      const Inputs in(type, shapes, 100);
      Pages at_once(context, type, shapes, whole);
      Pages backwards(context, type, shapes, whole);
      run(context, kv_store, in.k, in.v, whole.sequences(), at_once.view);
      for (int64_t t = 99; t >= 0; --t) {
        const std::vector<int64_t> offsets = {0, 1};
        const std::vector<int64_t> first = {t};
        run(context, kv_store, in.k.view().rows(t, 1), in.v.view().rows(t, 1),
            Sequences{offsets, first}, backwards.view);
      }
      check_same_bits("pages", backwards.on_host(context), at_once.on_host(context));
    }
  });
}

TEST_CASE("attention stands large scores", "[attention]") {
  for_each_backend([&](Context& context) {
    for (DType type : kTypes) {
      const Shapes shapes{1, 1, 16};
      const Ragged ragged({80});
      Inputs in(type, shapes, 80);
      in.scale = 40.0f;
      const Outputs got = run_all(context, shapes, in, ragged);
      const ExpectedAll expected = expect(shapes, in, ragged);
      check_close("out", got.out, expected.out.expected);
      check_close("lse", got.lse, expected.lse.expected);
      check_close("dv", got.dv, expected.dv.expected);
      check_close("dq", got.dq, expected.dq.expected);
    }
  });
}

TEST_CASE("attention refuses what does not fit", "[attention]") {
  Context context(test_options(default_isa(), 1));
  const Shapes shapes{4, 2, 16};
  const Ragged ragged({10, 70});
  const Inputs in(DType::kF32, shapes, 80);
  Pages pages(context, DType::kF32, shapes, ragged);
  Outputs got(DType::kF32, shapes, 80);
  const auto call = [&](const Inputs& inputs, const KvView& kv, const Sequences& sequences,
                        float scale) {
    attention(context, inputs.q, kv, sequences, scale, got.out, got.lse);
  };
  CHECK_NOTHROW(call(in, pages.view, ragged.sequences(), 1));
  CHECK_THROWS_AS(call(Inputs(DType::kF32, {3, 2, 16}, 80), pages.view, ragged.sequences(), 1),
                  ShapeError);
  CHECK_THROWS_AS(call(Inputs(DType::kBF16, shapes, 80), pages.view, ragged.sequences(), 1),
                  ShapeError);
  CHECK_THROWS_AS(call(Inputs(DType::kF32, shapes, 79), pages.view, ragged.sequences(), 1),
                  ShapeError);
  CHECK_THROWS_AS(call(in, pages.view, ragged.sequences(), 0), ShapeError);
  KvView narrow = pages.view;
  narrow.head_width = 8;
  CHECK_THROWS_AS(call(in, narrow, ragged.sequences(), 1), ShapeError);
  const std::vector<int64_t> late = {0, 60};
  CHECK_THROWS_AS(call(in, pages.view, {ragged.offsets, late}, 1), ShapeError);
  const std::vector<int64_t> started = {1, 0};
  CHECK_THROWS_AS(attention_backward(context, in.q, pages.view, {ragged.offsets, started}, 1,
                                     got.out, got.lse, in.dout, got.dq, got.dk, got.dv),
                  ShapeError);
}

}  // namespace
}  // namespace degu::testing
