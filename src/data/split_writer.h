// The shards of one domain and split, written one after another as they fill up.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/shard.h"

namespace degu {

class SplitWriter {
 public:
  // Takes up after the shards that an earlier run of the same preparation left in `folder`/shards.
  // DataError if one belongs to another preparation.
  SplitWriter(std::string folder, ShardLabel label, int64_t shard_tokens);

  // To be asked once for each document, in order: false if a finished shard holds it already.
  bool wants_next() { return asked_++ >= finished_documents_; }

  struct Origin {
    uint64_t hash;
    int32_t source;
    int64_t line;
    int64_t bytes;  // of the text
  };
  // A document that `wants_next` said yes to; BOS or EOS -1 are left out.
  void add(std::span<const int32_t> ids, int bos, int eos, const Origin& origin);
  void finish();  // writes the last, shorter shard

  const SplitEntry& entry() const { return entry_; }

 private:
  std::string relative_path(int64_t index) const;
  void flush();

  std::string folder_;
  ShardLabel label_;
  int64_t shard_tokens_;
  int64_t finished_documents_ = 0;  // in shards of an earlier run
  int64_t asked_ = 0;
  ShardContent content_;
  SplitEntry entry_;
};

}  // namespace degu
