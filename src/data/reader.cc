#include "data/reader.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"

namespace degu {
namespace {

// The finaliser of splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of
// z.
uint64_t hash_bits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

int64_t windows_of(const TokenStream& stream, int64_t sequence_length) {
  return std::max<int64_t>(stream.tokens() - 1, 0) / sequence_length;
}

// Appends window `window` of `stream` as sequence number `row` of `out`, whose arrays have their
// size.
void read_window(const TokenStream& stream, int64_t window, int64_t row, bool confine,
                 SequenceBatch& out) {
  const int64_t length = out.sequence_length;
  const int64_t first = window * length;
  const int64_t at = row * length;
  const std::span<int32_t> tokens =
      std::span(out.tokens_T).subspan(static_cast<size_t>(at), static_cast<size_t>(length));
  int32_t* const targets = out.targets_T.data() + at;
  stream.read(first, tokens);
  std::copy(tokens.begin() + 1, tokens.end(), targets);
  stream.read(first + length, std::span(targets + length - 1, 1));
  out.counted_targets += length;

  int64_t part = 0;  // start of the present document's part
  int32_t* const positions = out.positions_T.data() + at;
  const auto close_part = [&](int64_t end) {
    out.document_offsets.push_back(at + part);
    std::iota(positions + part, positions + end, 0);
    part = end;
  };
  if (confine) {
    // A document that starts at t is not to be foretold from the one before it.
    stream.for_document_starts(first + 1, length, [&](int64_t before) {
      targets[before] = SequenceBatch::kNotCounted;
      --out.counted_targets;
      if (before + 1 < length) close_part(before + 1);
    });
  }
  close_part(length);
}

void begin(int64_t sequences, int64_t length, SequenceBatch& out) {
  const auto tokens = static_cast<size_t>(sequences * length);
  out.sequences = sequences;
  out.sequence_length = length;
  out.tokens_T.resize(tokens);
  out.targets_T.resize(tokens);
  out.positions_T.resize(tokens);
  out.document_offsets.clear();
  out.counted_targets = 0;
}

// The domains that a configuration names, or all, with their weights.
std::vector<MixturePart> resolve_mixture(const TokenDataset& dataset, const DataConfig& config) {
  std::vector<MixturePart> mixture = config.mixture;
  if (mixture.empty()) {
    for (const TokenDataset::Domain& domain : dataset.domains()) {
      mixture.push_back({domain.name, static_cast<double>(domain.train.tokens())});
    }
  }
  for (const MixturePart& part : mixture) {
    if (dataset.find(part.name) >= 0) continue;
    std::string known;
    for (const auto& domain : dataset.domains()) known += (known.empty() ? "" : ", ") + domain.name;
    throw ConfigError("data.mixture: no domain '{}' in data.paths; there are {}", part.name, known);
  }
  return mixture;
}

std::vector<double> weights_of(const std::vector<MixturePart>& mixture) {
  std::vector<double> weights;
  weights.reserve(mixture.size());
  for (const MixturePart& part : mixture) weights.push_back(part.weight);
  return weights;
}

}  // namespace

void DataConfig::check() const {
  if (sequence_length < 1) {
    throw ConfigError("data.sequence_length: {}; must be at least 1", sequence_length);
  }
  if (validation_tokens < 0) {
    throw ConfigError("data.validation_tokens: {}; must be at least 0", validation_tokens);
  }
  for (size_t i = 0; i < mixture.size(); ++i) {
    const double weight = mixture[i].weight;
    if (!(weight >= 0) || !std::isfinite(weight)) {
      throw ConfigError("data.mixture: weight {} of '{}'; must be a number, at least 0", weight,
                        mixture[i].name);
    }
    for (size_t j = 0; j < i; ++j) {
      if (mixture[j].name == mixture[i].name) {
        throw ConfigError("data.mixture: '{}' is listed twice", mixture[i].name);
      }
    }
  }
}

void SequenceBatch::reserve(int64_t max_sequences, int64_t length) {
  const auto tokens = static_cast<size_t>(max_sequences * length);
  tokens_T.reserve(tokens);
  targets_T.reserve(tokens);
  positions_T.reserve(tokens);
  document_offsets.reserve(tokens + 1);
}

// ---- permutation ----

Permutation::Permutation(uint64_t size, uint64_t seed, std::string_view purpose, uint64_t epoch)
    : size_(size) {
  const int bits = std::max(2, static_cast<int>(std::bit_width(size - (size > 0 ? 1 : 0))));
  low_bits_ = bits / 2;
  high_bits_ = bits - low_bits_;
  const RandomStream random(seed, purpose, epoch);
  for (uint64_t round = 0; round < kRounds; ++round) keys_[round] = random.bits64(round);
}

uint64_t Permutation::operator()(uint64_t index) const {
  DEGU_DCHECK(index < size_);
  uint64_t x = index;
  do {
    uint64_t low = x & ((uint64_t{1} << low_bits_) - 1);
    uint64_t high = x >> low_bits_;
    for (int round = 0; round < kRounds; round += 2) {
      // Each half in turn is masked with a hash of the other.
      high ^= hash_bits(low ^ keys_[round]) >> (64 - high_bits_);
      low ^= hash_bits(high ^ keys_[round + 1]) >> (64 - low_bits_);
    }
    x = high << low_bits_ | low;
  } while (x >= size_);
  return x;
}

// ---- mixture ----

DataMixture::DataMixture(std::span<const double> weights) : quotas_(weights.size(), 0) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (!(total > 0)) throw ConfigError("data.mixture: no part has a positive weight");
  // Largest remainders, with at least one sequence per cycle for every positive weight.
  int64_t left = kCycle;
  std::vector<std::pair<double, size_t>> remainders;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] <= 0) continue;
    const double exact = weights[i] / total * static_cast<double>(kCycle);
    quotas_[i] = std::max<int64_t>(1, static_cast<int64_t>(exact));
    left -= quotas_[i];
    remainders.emplace_back(static_cast<double>(quotas_[i]) - exact, i);
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t k = 0; left > 0; ++k, --left) ++quotas_[remainders[k % remainders.size()].second];
  while (left < 0) {
    --*std::max_element(quotas_.begin(), quotas_.end());
    ++left;
  }
  // Each slot goes to the part that is furthest behind its share.
  std::vector<int64_t> credit(weights.size(), 0);
  std::vector<int32_t> given(weights.size(), 0);
  for (int64_t slot = 0; slot < kCycle; ++slot) {
    size_t best = 0;
    for (size_t i = 0; i < credit.size(); ++i) {
      credit[i] += quotas_[i];
      if (credit[i] > credit[best]) best = i;
    }
    credit[best] -= kCycle;
    part_of_.push_back(static_cast<int32_t>(best));
    rank_of_.push_back(given[best]++);
  }
}

DataMixture::Draw DataMixture::operator()(int64_t sequence) const {
  const int64_t cycle = sequence / kCycle;
  const auto slot = static_cast<size_t>(sequence % kCycle);
  const int part = part_of_[slot];
  return {part, cycle * quotas_[static_cast<size_t>(part)] + rank_of_[slot]};
}

int64_t DataMixture::drawn(int part, int64_t sequences) const {
  const int64_t rest = sequences % kCycle;
  int64_t count = sequences / kCycle * quotas_[static_cast<size_t>(part)];
  return count + std::count(part_of_.begin(), part_of_.begin() + rest, part);
}

double DataMixture::weight(int part) const {
  return static_cast<double>(quotas_[static_cast<size_t>(part)]) / static_cast<double>(kCycle);
}

// ---- training batches ----

BatchReader::BatchReader(const TokenDataset& dataset, const DataConfig& config,
                         int64_t batch_sequences)
    : mixture_(weights_of(resolve_mixture(dataset, config))),
      batch_sequences_(batch_sequences),
      sequence_length_(config.sequence_length),
      confine_(config.confine_documents),
      seed_(static_cast<uint64_t>(config.seed)) {
  config.check();
  if (batch_sequences < 1)
    throw ConfigError("batch of {} sequences; must be at least 1", batch_sequences);
  const std::vector<MixturePart> mixture = resolve_mixture(dataset, config);
  for (size_t i = 0; i < mixture.size(); ++i) {
    const auto& domain = dataset.domains()[static_cast<size_t>(dataset.find(mixture[i].name))];
    const int64_t windows = windows_of(domain.train, sequence_length_);
    const double weight = mixture_.weight(static_cast<int>(i));
    if (weight > 0 && windows == 0) {
      throw DataError(
          "domain '{}': {} training tokens are fewer than a sequence of {} + 1; give it weight "
          "0 or more text",
          domain.name, domain.train.tokens(), sequence_length_);
    }
    parts_.push_back({domain.name, weight, windows});
    streams_.push_back(&domain.train);
  }
}

std::pair<int, int64_t> BatchReader::window_of(int64_t sequence) const {
  const auto [part, visit] = mixture_(sequence);
  const Part& chosen = parts_[static_cast<size_t>(part)];
  const int64_t epoch = visit / chosen.windows;
  const Permutation order(static_cast<uint64_t>(chosen.windows), seed_ ^ hash_name(chosen.name),
                          "data order", static_cast<uint64_t>(epoch));
  return {part, static_cast<int64_t>(order(static_cast<uint64_t>(visit % chosen.windows)))};
}

void BatchReader::read_sequences(int64_t step, int64_t first, int64_t count,
                                 SequenceBatch& out) const {
  DEGU_DCHECK(first >= 0 && count >= 0 && first + count <= batch_sequences_);
  read_global(step * batch_sequences_ + first, count, out);
}

void BatchReader::read_global(int64_t first, int64_t count, SequenceBatch& out) const {
  begin(count, sequence_length_, out);
  for (int64_t row = 0; row < count; ++row) {
    const auto [part, window] = window_of(first + row);
    read_window(*streams_[static_cast<size_t>(part)], window, row, confine_, out);
  }
  out.document_offsets.push_back(out.tokens());
}

double BatchReader::epochs(int part, int64_t steps) const {
  const int64_t windows = parts_[static_cast<size_t>(part)].windows;
  if (windows == 0) return 0.0;
  return static_cast<double>(mixture_.drawn(part, steps * batch_sequences_)) /
         static_cast<double>(windows);
}

// ---- validation ----

ValidationSet::ValidationSet(const TokenDataset& dataset, const DataConfig& config)
    : sequence_length_(config.sequence_length), confine_(config.confine_documents) {
  config.check();
  const std::vector<MixturePart> mixture = resolve_mixture(dataset, config);
  double total = 0;
  for (const MixturePart& part : mixture) total += part.weight;
  int64_t sequences = 0;
  for (const MixturePart& part : mixture) {
    const auto& domain = dataset.domains()[static_cast<size_t>(dataset.find(part.name))];
    const int64_t available = windows_of(domain.validation, sequence_length_);
    if (available == 0) {
      log_warn(
          "domain '{}': {} validation tokens are fewer than a sequence of {} + 1; it is not "
          "validated",
          part.name, domain.validation.tokens(), sequence_length_);
      continue;
    }
    const int64_t wanted = config.validation_tokens == 0
                               ? available
                               : std::max<int64_t>(1, config.validation_tokens / sequence_length_);
    const int64_t taken = std::min(wanted, available);
    domains_.push_back({.name = part.name,
                        .weight = total > 0 ? part.weight / total : 0.0,
                        .first_sequence = sequences,
                        .sequences = taken,
                        .counted_targets = 0,
                        .counted_bytes = 0});
    streams_.push_back(&domain.validation);
    sequences += taken;
  }
  if (domains_.empty()) {
    throw DataError(
        "no domain has a validation sequence; prepare the data with a larger --val-fraction");
  }
  count_targets(dataset.tokenizer());
}

void ValidationSet::count_targets(const Tokenizer& tokenizer) {
  SequenceBatch batch;
  for (Domain& domain : domains_) {
    for (int64_t i = 0; i < domain.sequences; ++i) {
      read(domain.first_sequence + i, 1, batch);
      domain.counted_targets += batch.counted_targets;
      for (int32_t target : batch.targets_T) {
        if (target != SequenceBatch::kNotCounted)
          domain.counted_bytes += tokenizer.token_bytes(target);
      }
    }
  }
}

int64_t ValidationSet::sequences() const {
  return domains_.back().first_sequence + domains_.back().sequences;
}

int ValidationSet::domain_of(int64_t sequence) const {
  const auto after = std::upper_bound(
      domains_.begin(), domains_.end(), sequence,
      [](int64_t value, const Domain& domain) { return value < domain.first_sequence; });
  return static_cast<int>(after - domains_.begin()) - 1;
}

int64_t ValidationSet::window_of(int domain, int64_t sequence) const {
  const Domain& chosen = domains_[static_cast<size_t>(domain)];
  const int64_t available = windows_of(*streams_[static_cast<size_t>(domain)], sequence_length_);
  return (sequence - chosen.first_sequence) * available / chosen.sequences;
}

void ValidationSet::read(int64_t first, int64_t count, SequenceBatch& out) const {
  DEGU_DCHECK(first >= 0 && count >= 0 && first + count <= sequences());
  begin(count, sequence_length_, out);
  for (int64_t row = 0; row < count; ++row) {
    const int domain = domain_of(first + row);
    read_window(*streams_[static_cast<size_t>(domain)], window_of(domain, first + row), row,
                confine_, out);
  }
  out.document_offsets.push_back(out.tokens());
}

}  // namespace degu
