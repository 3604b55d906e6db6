// What communicators over host memory have in common: checks at the door, verification across
// ranks, reductions in tree order, rounds through a bounded buffer. A transport (one rank, threads,
// MPI, sockets) supplies the few moves of bytes below.
#pragma once

#include "comm/communicator.h"
#include "tensor/tensor.h"

namespace degu {

struct Piece {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

class HostCommunicator : public Communicator {
 public:
  using Communicator::all_gather;
  using Communicator::reduce_scatter;

  int rank() const final { return rank_; }
  int size() const final { return size_; }

  Work all_reduce(Context&, AnyView x, Reduce, Order) final;
  Work reduce_scatter(Context&, AnyView in, Counts counts, AnyView out, Reduce, Order) final;
  Work all_gather(Context&, AnyView in, AnyView out, Counts counts) final;
  Work all_to_all_rows(Context&, AnyView send, Counts send_rows, AnyView recv,
                       Counts recv_rows) final;
  Work broadcast(Context&, AnyView x, int root) final;
  void barrier() final;
  std::vector<std::string> gather_text(std::string_view mine) final;
  std::string broadcast_text(std::string_view text, int root) final;

 protected:
  HostCommunicator(int rank, int size, const CommOptions& options);

  // Transport. `what` names the collective in errors. Pieces of no bytes are allowed everywhere.
  // send[r] goes to rank r and arrives as recv[rank()] there; the piece for rank() itself is
  // copied.
  virtual void exchange(const char* what, std::span<const Piece> send,
                        std::span<const Piece> recv) = 0;
  // all[r] becomes rank r's `mine`; all[rank()] may be `mine` itself. The pieces of `all` are
  // neighbours in memory, in rank order, and of the same sizes on all ranks.
  virtual void gather(const char* what, Piece mine, std::span<const Piece> all) = 0;
  virtual void send_from(const char* what, Piece data, int root) = 0;
  virtual void wait_for_all(const char* what) = 0;
  // Collectives that the transport makes itself (split, make_counter) pass through here first.
  enum class Kind : int32_t {
    kAllReduce,
    kReduceScatter,
    kAllGather,
    kAllToAllRows,
    kBroadcast,
    kBarrier,
    kGatherText,
    kBroadcastText,
    kSplit,
    kMakeCounter
  };
  void verify_call(Kind kind);

  // The transport's own reduction in an order of its choice; false when it has none for these.
  virtual bool native_all_reduce(const char* what, AnyView x, Reduce reduce);

  const CommOptions& options() const { return options_; }

 private:
  struct Call;  // what one rank brings to a collective
  void verify(const Call& mine);
  void verify_rows(Counts send_rows, Counts recv_rows);
  void gather_whole(Context&, AnyView x, Reduce);
  void reduce_parts(Context&, const char* what, AnyView in, Counts shard_begins, Counts shard_ends,
                    std::byte* out, Reduce);
  void sum_sources(Context&, Reduce, DType, std::byte* dst, int64_t elements);

  int rank_;
  int size_;
  CommOptions options_;
  int64_t calls_ = 0;
  Tensor scratch_;
  std::vector<Piece> send_pieces_, recv_pieces_;  // one per rank, sized once
  std::vector<const void*> sources_;
  std::vector<int64_t> begins_, ends_;
};

}  // namespace degu
