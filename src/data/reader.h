// Batches from prepared shards: a pure function of (configuration, global sequence number).
//
// The training text of a domain is one long run of tokens, cut into windows of S + 1 tokens that
// overlap by one (S inputs and their S targets). A window is visited once per epoch, in an order
// that a keyed permutation gives; which domain sequence number g takes follows from the mixture's
// weights and g alone. Nothing but the step has to be remembered, and no result depends on how many
// ranks ask.
//
// Threads: const members may be called from any number of threads, each with its own SequenceBatch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/data_config.h"
#include "data/token_dataset.h"

namespace degu {

// Packed sequences, row after row. T = sequences * S. Reusing one object reuses its memory.
struct SequenceBatch {
  static constexpr int32_t kNotCounted = -1;

  int64_t sequences = 0;
  int64_t sequence_length = 0;  // S
  std::vector<int32_t> tokens_T;
  std::vector<int32_t> targets_T;    // the next token, or kNotCounted
  std::vector<int32_t> positions_T;  // from 0 at the start of each document's part
  // Where the documents' parts start within the batch, ascending, first 0, last T: the ragged
  // sequences that attention runs over. Each packed sequence starts one; with confine_documents off
  // there are no others.
  std::vector<int64_t> document_offsets;
  int64_t counted_targets = 0;

  int64_t tokens() const { return sequences * sequence_length; }
  // Allocates for this size, so that later reads of up to as many sequences do not.
  void reserve(int64_t max_sequences, int64_t length);
};

// A keyed permutation of [0, size): a Feistel network on the bits of size - 1 that walks its cycle
// until it is back inside. Needs no memory and gives any element at once.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t seed, std::string_view purpose, uint64_t epoch);
  uint64_t operator()(uint64_t index) const;
  uint64_t size() const { return size_; }

 private:
  static constexpr int kRounds = 6;
  uint64_t size_;
  int low_bits_, high_bits_;
  uint64_t keys_[kRounds];
};

// Which domain each sequence of a run comes from. Over a cycle of kCycle sequences every domain
// gets its exact share (weights are rounded to 1 / kCycle, none below it), and after any number of
// sequences a domain is within a few sequences of its weight.
class DataMixture {
 public:
  static constexpr int64_t kCycle = 1 << 14;

  explicit DataMixture(
      std::span<const double> weights);  // positive ones get a share; ConfigError if none

  struct Draw {
    int part;
    int64_t visit;  // how many sequences of this part came before
  };
  Draw operator()(int64_t sequence) const;
  // Sequences of `part` among the first `sequences`.
  int64_t drawn(int part, int64_t sequences) const;
  double weight(int part) const;  // as rounded
  int parts() const { return static_cast<int>(quotas_.size()); }

 private:
  std::vector<int64_t> quotas_;   // per cycle
  std::vector<int32_t> part_of_;  // [kCycle]
  std::vector<int32_t> rank_of_;  // [kCycle]: earlier slots of the same part in the cycle
};

class BatchReader {
 public:
  // Keeps a reference to the dataset. ConfigError for an unknown domain or one too short for a
  // window.
  BatchReader(const TokenDataset& dataset, const DataConfig& config, int64_t batch_sequences);

  // Sequences [first, first + count) of step `step`'s batch; the same whoever asks.
  void read_sequences(int64_t step, int64_t first, int64_t count, SequenceBatch& out) const;
  // The same by the number of the sequence in the whole run, for batches that change their size.
  void read_global(int64_t first, int64_t count, SequenceBatch& out) const;

  int64_t batch_sequences() const { return batch_sequences_; }
  int64_t sequence_length() const { return sequence_length_; }

  struct Part {
    std::string name;
    double weight;
    int64_t windows;  // sequences of one epoch
  };
  const std::vector<Part>& parts() const { return parts_; }
  // How often the windows of `part` have been visited on average when `steps` steps are done.
  double epochs(int part, int64_t steps) const;
  const DataMixture& mixture() const { return mixture_; }
  // Which window of which part a sequence of the run is.
  std::pair<int, int64_t> window_of(int64_t sequence) const;

 private:
  std::vector<Part> parts_;
  std::vector<const TokenStream*> streams_;
  DataMixture mixture_;
  int64_t batch_sequences_;
  int64_t sequence_length_;
  bool confine_;
  uint64_t seed_;
};

// A fixed set of sequences per domain: the windows of the first `validation_tokens` tokens of the
// validation split. Loss in bits per byte is sum of losses [nats] / (counted_bytes ln 2), over a
// domain's sequences.
class ValidationSet {
 public:
  // Domains of the mixture, or all. A domain whose split is shorter than one window is left out
  // with a warning; DataError when that leaves none.
  ValidationSet(const TokenDataset& dataset, const DataConfig& config);

  struct Domain {
    std::string name;
    double weight;           // in the mixture, normalised
    int64_t first_sequence;  // its sequences are [first_sequence, first_sequence + sequences)
    int64_t sequences;
    int64_t counted_targets;
    int64_t counted_bytes;  // of text, under the counted targets
  };
  const std::vector<Domain>& domains() const { return domains_; }
  int64_t sequences() const;
  int domain_of(int64_t sequence) const;  // index into domains()
  // Sequences [first, first + count) of the whole set.
  void read(int64_t first, int64_t count, SequenceBatch& out) const;

 private:
  int64_t window_of(int domain, int64_t sequence) const;
  void count_targets(const Tokenizer& tokenizer);

  std::vector<Domain> domains_;
  std::vector<const TokenStream*> streams_;
  int64_t sequence_length_;
  bool confine_;
};

}  // namespace degu
