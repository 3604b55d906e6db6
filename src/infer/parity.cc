#include "infer/parity.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/random.h"
#include "comm/agree.h"
#include "nn/head.h"

namespace degu {
namespace {

// Lengths of passes at and around the tiles of the kernels (12 rows, 16 queries, blocks of 64 keys)
// and of sequences around pages.
constexpr int64_t kChunks[] = {1,  2,  3,  4,  5,  8,  11, 12, 13, 15, 16, 17, 23,  24,  25, 31,
                               32, 33, 36, 37, 47, 48, 49, 63, 64, 65, 96, 97, 127, 128, 129};
constexpr int64_t kLengths[] = {129, 64, 65, 63, 128, 127, 1, 66, 191, 192, 193, 2, 100};

// Draws numbers one after another.
class Draws {
 public:
  Draws(uint64_t seed, std::string_view purpose, uint64_t step = 0)
      : stream_(seed, purpose, step) {}
  int64_t below(int64_t n) {
    return static_cast<int64_t>(stream_.below(next_++, static_cast<uint64_t>(n)));
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  RandomStream stream_;
  uint64_t next_ = 0;
};

struct Sequence {
  std::vector<int32_t> tokens;
  size_t like = 0;  // an earlier sequence (or itself) that begins with the same whole pages …
  int64_t shared_pages = 0;  // … this many
  std::vector<float> logit_TV;
  std::vector<std::vector<int32_t>> expert_LTK;  // per MoE layer

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
};

std::vector<Sequence> draw_sequences(const ModelShape& shape, const ParityOptions& options,
                                     uint64_t round) {
  Draws draws(options.seed, "parity sequences", round);
  std::vector<Sequence> all(static_cast<size_t>(options.sequences));
  for (size_t i = 0; i < all.size(); ++i) {
    Sequence& s = all[i];
    const size_t at = i + static_cast<size_t>(round) * all.size();
    int64_t length = at < std::size(kLengths) ? kLengths[at] : 1 + draws.below(options.longest);
    length = std::clamp<int64_t>(length, 1, options.longest);
    for (int64_t t = 0; t < length; ++t) {
      s.tokens.push_back(static_cast<int32_t>(draws.below(shape.vocab)));
    }
    s.like = i;
    const int64_t before = i == 0 ? 0 : all[i - 1].length() / kKvPageKeys;
    // At least one token is new, as in serving.
    s.shared_pages = std::min(before, (length - 1) / kKvPageKeys);
    if (s.shared_pages == 0) continue;
    s.like = i - 1;
    std::copy_n(all[i - 1].tokens.begin(), s.shared_pages * kKvPageKeys, s.tokens.begin());
  }
  return all;
}

// ---- the training forward ----

// Whole sequences in one pass with everything kept for a backward pass; fills logits and experts.
void training_forward(Context& context, ParameterSet& parameters, const Transformer& model,
                      DType kv_type, std::span<Sequence*> sequences) {
  const ModelShape& shape = model.shape();
  std::vector<int32_t> tokens, positions;
  std::vector<int64_t> offsets = {0};
  for (const Sequence* s : sequences) {
    tokens.insert(tokens.end(), s->tokens.begin(), s->tokens.end());
    for (int64_t t = 0; t < s->length(); ++t) positions.push_back(static_cast<int32_t>(t));
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  const std::vector<int64_t> first(sequences.size(), 0);
  const auto count = static_cast<int64_t>(tokens.size());
  const auto groups = static_cast<int64_t>(sequences.size());

  const auto lay_out = [&](Arena& arena) {
    Activations saved = model.take(arena, count, groups, Keep::kAll);
    LocalKv kv(context, arena, shape, kv_type, count, shape.layers);
    return std::pair(std::move(saved), std::move(kv));
  };
  Arena counter = Arena::measuring(context.device());
  lay_out(counter);
  Arena arena(counter.used(), context.device());
  auto [saved, kv] = lay_out(arena);
  const Batch batch{.tokens_T = tokens,
                    .positions_T = positions,
                    .sequences = {.offsets = offsets, .first_position = first},
                    .kv_L = kv.views()};
  const TokenGroups token_groups{
      .units = {.offsets = offsets, .groups = 1, .slots = 1, .units = groups},
      .balance_offsets = offsets,
      .capacity_offsets = offsets};
  kv.assign(context, batch.sequences);
  model.forward(context, batch, token_groups, {.aux_per_group = 0.01, .z_per_token = 0.001}, saved);

  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    s.logit_TV.resize(static_cast<size_t>(s.length() * shape.vocab));
    const ScratchScope scope(context.scratch());
    const AnyView logits = context.scratch().take(DType::kF32, {s.length(), shape.vocab});
    head_logits(context, saved.h_TD.rows(offsets[i], s.length()), parameters.head(),
                model.logit_multiplier(), logits);
    copy(context, logits, View<float>(s.logit_TV.data(), {s.length(), shape.vocab}));
    s.expert_LTK.clear();
    for (const BlockActivations& block : saved.blocks) {
      if (!block.moe.router.expert_TK) continue;
      const OnHost chosen(context, block.moe.router.expert_TK.rows(offsets[i], s.length()));
      const int32_t* from = chosen.as<const int32_t>().data();
      s.expert_LTK.emplace_back(from, from + s.length() * shape.moe.top_k);
    }
  }
}

std::vector<Sequence> reference(Context& context, ParameterSet& parameters,
                                const Transformer& model, const ParityOptions& options,
                                uint64_t round) {
  std::vector<Sequence> all = draw_sequences(model.shape(), options, round);
  std::vector<Sequence*> pointers;
  pointers.reserve(all.size());
  for (Sequence& s : all) pointers.push_back(&s);
  training_forward(context, parameters, model, options.kv_type, pointers);
  return all;
}

// ---- comparing ----

class Comparer {
 public:
  Comparer(const ModelShape& shape, const std::vector<Sequence>& expected, ParityPath& path,
           int threads)
      : shape_(shape), expected_(expected), path_(path), threads_(threads) {}

  // Row `position` of a sequence: its logits and its experts in each MoE layer.
  void row(size_t sequence, int64_t position, const float* logit_V,
           const std::vector<const int32_t*>& expert_LK) {
    const Sequence& s = expected_[sequence];
    const auto vocab = static_cast<size_t>(shape_.vocab);
    count(std::memcmp(logit_V, s.logit_TV.data() + static_cast<size_t>(position) * vocab,
                      vocab * sizeof(float)) == 0,
          sequence, position, "logits");
    const auto k = static_cast<size_t>(shape_.moe.top_k);
    for (size_t l = 0; l < expert_LK.size(); ++l) {
      count(std::equal(expert_LK[l], expert_LK[l] + k,
                       s.expert_LTK[l].begin() + position * static_cast<int64_t>(k)),
            sequence, position, "experts");
    }
  }

 private:
  void count(bool equal, size_t sequence, int64_t position, const char* what) {
    ++path_.comparisons;
    if (equal) return;
    if (path_.mismatches++ == 0) {
      path_.first_mismatch = fmt::format("{} of token {} of {} ({} threads)", what, position,
                                         expected_[sequence].length(), threads_);
    }
  }

  const ModelShape& shape_;
  const std::vector<Sequence>& expected_;
  ParityPath& path_;
  int threads_;
};

// ---- serving ----

// Some new tokens of a sequence, and then `wrong` tokens that a speculation got wrong.
struct Step {
  size_t sequence = 0;
  int64_t rows = 0;
  int64_t wrong = 0;
};

// Sequences on their way through the cache, at pages drawn at random.
class Serving {
 public:
  Serving(ModelRunner& runner, const std::vector<Sequence>& sequences, Comparer& comparer,
          Draws& draws)
      : runner_(runner),
        sequences_(sequences),
        comparer_(comparer),
        draws_(draws),
        done_(sequences.size(), 0),
        pages_(sequences.size()) {
    for (int32_t p = 0; p < runner.memory().pages(); ++p) free_.push_back(p);
    draws_.shuffle(free_);
  }

  int64_t left(size_t i) const { return sequences_[i].length() - done_[i]; }
  int64_t remaining() const {
    int64_t sum = 0;
    for (size_t i = 0; i < done_.size(); ++i) sum += left(i);
    return sum;
  }
  int64_t draw_chunk(size_t i) {
    return std::min(
        left(i),
        kChunks[static_cast<size_t>(draws_.below(static_cast<int64_t>(std::size(kChunks))))]);
  }
  // Begins with the pages of the sequence that starts alike.
  void reuse_prefix(size_t i) {
    const Sequence& s = sequences_[i];
    const auto& from = pages_[s.like];
    pages_[i].assign(from.begin(), from.begin() + s.shared_pages);
    done_[i] = s.shared_pages * kKvPageKeys;
  }

  void pass(const std::vector<Step>& steps) {
    PassPlan plan;
    for (const Step& step : steps) plan.sequences.push_back(rows_of(step));
    const PassOutput out = runner_.run(plan);
    const int64_t k = runner_.shape().moe.top_k;
    int64_t row = 0;
    for (const Step& step : steps) {
      for (int64_t r = 0; r < step.rows; ++r) {
        std::vector<const int32_t*> experts;
        for (const AnyView& view : out.expert_LTK) {
          experts.push_back(view.as<const int32_t>().data() + (row + r) * k);
        }
        comparer_.row(step.sequence, done_[step.sequence] + r, out.logit_RV.row(row + r), experts);
      }
      done_[step.sequence] += step.rows;
      row += step.rows + step.wrong;
    }
  }

  // A token of each sequence that is not done.
  void decode_pass() {
    std::vector<Step> steps;
    for (size_t i = 0; i < done_.size(); ++i) {
      if (left(i) > 0) steps.push_back({.sequence = i, .rows = 1});
    }
    pass(steps);
  }

  // Passes over random sequences with random chunks; some end in wrong drafts when `speculate`.
  void random_pass(bool speculate) {
    std::vector<Step> steps;
    int64_t room = runner_.limits().rows;
    for (size_t i = 0; i < done_.size(); ++i) {
      if (left(i) == 0 || draws_.below(3) == 0) continue;
      Step step{.sequence = i, .rows = std::min(room, draw_chunk(i))};
      room -= step.rows;
      if (speculate) step.wrong = std::min(room, draws_.below(5));
      room -= step.wrong;
      if (step.rows > 0) steps.push_back(step);
    }
    pass(steps);
  }

 private:
  SequenceRows rows_of(const Step& step) {
    const Sequence& s = sequences_[step.sequence];
    SequenceRows rows{.first_position = done_[step.sequence]};
    const auto first = s.tokens.begin() + rows.first_position;
    rows.tokens.assign(first, first + step.rows);
    for (int64_t w = 0; w < step.wrong; ++w) {
      rows.tokens.push_back(static_cast<int32_t>(draws_.below(runner_.shape().vocab)));
    }
    std::vector<int32_t>& pages = pages_[step.sequence];
    const int64_t needed = kv_pages_for(rows.first_position + rows.rows());
    while (static_cast<int64_t>(pages.size()) < needed) {
      pages.push_back(free_.back());
      rows.fresh.push_back(free_.back());
      free_.pop_back();
    }
    rows.pages = pages;
    return rows;
  }

  ModelRunner& runner_;
  const std::vector<Sequence>& sequences_;
  Comparer& comparer_;
  Draws& draws_;
  std::vector<int64_t> done_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<int32_t> free_;
};

constexpr const char* kPathNames[] = {"training alone", "prefill",        "chunked prefill",
                                      "decode",         "batched",        "prefix reuse",
                                      "speculation",    "decode together"};

ModelRunner make_runner(Context& context, ParameterSet& parameters, const Transformer& model,
                        const ParityOptions& options) {
  // A wrong draft may need one page more than its sequence.
  const int64_t pages = options.sequences * (kv_pages_for(options.longest) + 1);
  const int64_t rows = std::max<int64_t>(options.longest + 8, 256);
  return {context,         parameters,
          model,           {.rows = rows, .logit_rows = rows},
          options.kv_type, static_cast<int32_t>(pages)};
}

void serve_alone(Serving& serving, size_t sequences, auto&& rows_of) {
  for (size_t i = 0; i < sequences; ++i) {
    while (serving.left(i) > 0) serving.pass({{.sequence = i, .rows = rows_of(i)}});
  }
}

void check_round(Context& context, ParameterSet& parameters, const Transformer& model,
                 ModelRunner& runner, const std::vector<Sequence>& expected,
                 const ParityOptions& options, Draws& draws, std::vector<ParityPath>& paths) {
  const size_t n = expected.size();
  const auto with = [&](size_t path, auto&& body) {
    Comparer comparer(model.shape(), expected, paths[path], context.threads());
    Serving serving(runner, expected, comparer, draws);
    body(comparer, serving);
  };
  with(0, [&](Comparer& comparer, Serving&) {
    for (size_t i = 0; i < n; ++i) {
      Sequence alone{.tokens = expected[i].tokens};
      Sequence* one[] = {&alone};
      training_forward(context, parameters, model, options.kv_type, one);
      const int64_t k = model.shape().moe.top_k;
      for (int64_t t = 0; t < alone.length(); ++t) {
        std::vector<const int32_t*> experts;
        for (const auto& layer : alone.expert_LTK) experts.push_back(layer.data() + t * k);
        comparer.row(i, t, alone.logit_TV.data() + t * model.shape().vocab, experts);
      }
    }
  });
  with(1, [&](Comparer&, Serving& s) { serve_alone(s, n, [&](size_t i) { return s.left(i); }); });
  with(2, [&](Comparer&, Serving& s) {
    serve_alone(s, n, [&](size_t i) { return s.draw_chunk(i); });
  });
  with(3, [&](Comparer&, Serving& s) { serve_alone(s, n, [](size_t) { return int64_t{1}; }); });
  with(4, [&](Comparer&, Serving& s) {
    while (s.remaining() > 0) s.random_pass(/*speculate=*/false);
  });
  with(5, [&](Comparer&, Serving& s) {
    for (size_t i = 0; i < n; ++i) {
      s.reuse_prefix(i);
      while (s.left(i) > 0) s.pass({{.sequence = i, .rows = s.draw_chunk(i)}});
    }
  });
  with(6, [&](Comparer&, Serving& s) {
    while (s.remaining() > 0) s.random_pass(/*speculate=*/true);
  });
  with(7, [&](Comparer&, Serving& s) {
    for (size_t i = 0; i < n; ++i) s.pass({{.sequence = i, .rows = s.draw_chunk(i)}});
    while (s.remaining() > 0) s.decode_pass();
  });
}

}  // namespace

int64_t ParityReport::comparisons() const {
  int64_t sum = 0;
  for (const ParityPath& p : paths) sum += p.comparisons;
  return sum;
}

int64_t ParityReport::mismatches() const {
  int64_t sum = 0;
  for (const ParityPath& p : paths) sum += p.mismatches;
  return sum;
}

void ParityReport::add(const ParityReport& other) {
  for (const ParityPath& from : other.paths) {
    auto to = std::find_if(paths.begin(), paths.end(),
                           [&](const ParityPath& p) { return p.name == from.name; });
    if (to == paths.end()) {
      paths.push_back(from);
      continue;
    }
    to->comparisons += from.comparisons;
    to->mismatches += from.mismatches;
    if (to->first_mismatch.empty()) to->first_mismatch = from.first_mismatch;
  }
}

ParityReport check_parity(Context& context, ParameterSet& parameters,
                          const ParityOptions& options) {
  require_servable(parameters.shape());
  ParityReport report;
  for (const char* name : kPathNames) report.paths.push_back({.name = name});
  const Transformer model(parameters);
  std::vector<std::vector<Sequence>> expected;
  const auto check_in = [&](Context& own) {
    ModelRunner runner = make_runner(own, parameters, model, options);
    for (int round = 0; round < options.rounds; ++round) {
      // What the first thread count computed is what all others must reach.
      if (expected.size() <= static_cast<size_t>(round)) {
        expected.push_back(
            reference(own, parameters, model, options, static_cast<uint64_t>(round)));
      }
      Draws draws(options.seed, "parity passes", static_cast<uint64_t>(round));
      check_round(own, parameters, model, runner, expected[static_cast<size_t>(round)], options,
                  draws, report.paths);
    }
  };
  if (context.device() != DeviceType::kCpu) {
    check_in(context);
    return report;
  }
  for (int threads : options.threads) {
    Context own({.threads = threads, .isa = context.isa()});
    check_in(own);
  }
  return report;
}

ParityReport check_expert_parity(Communicator& group, Context& context, ParameterSet& whole,
                                 ParameterSet& part, const ParityOptions& options) {
  ParityReport report;
  report.paths.push_back({.name = fmt::format("experts over {} ranks", group.size())});
  const Transformer reference_model(whole);
  const Transformer model(part, {.group = &group});
  ModelRunner runner = make_runner(context, part, model, options);
  const auto rank = static_cast<uint64_t>(group.rank());
  for (int round = 0; round < options.rounds; ++round) {
    const uint64_t step = static_cast<uint64_t>(round) + 1000 * (rank + 1);
    const std::vector<Sequence> expected =
        reference(context, whole, reference_model, options, step);
    Draws draws(options.seed, "parity passes", step);
    Comparer comparer(model.shape(), expected, report.paths.front(), context.threads());
    Serving serving(runner, expected, comparer, draws);
    // Ranks that are done, or drew nothing, still take part in every pass.
    while (max_over_ranks(group, serving.remaining()) > 0) serving.random_pass(false);
  }
  return report;
}

}  // namespace degu
