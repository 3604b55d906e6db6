#include "comm/mpi_comm.h"

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>

#include "comm/host_communicator.h"

namespace degu {
namespace {

// MPI counts are ints; longer messages travel in pieces of this many bytes.
constexpr size_t kMaxMessage = size_t{1} << 30;

// Above this, every rank sends its part to every other: between two ranks of a node, Open MPI 4.1's
// MPI_Allgatherv was several times slower at 16 MB than plain messages of the same size.
constexpr size_t kGatherDirect = size_t{64} << 10;

// A broadcast that has not come by then is asked for at intervals, which grow.
constexpr std::chrono::milliseconds kEager(2);
constexpr std::chrono::microseconds kShortestRest(20);
constexpr std::chrono::microseconds kLongestRest(1000);

bool started_mpi = false;

void check(int code, const char* what, int rank, int size, size_t bytes) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw CommError("{} of {} bytes on rank {} of {}: {}", what, bytes, rank, size,
                  std::string_view(text.data(), static_cast<size_t>(length)));
}

MPI_Datatype to_mpi(DType type) {
  switch (type) {
    case DType::kF32:
      return MPI_FLOAT;
    case DType::kF64:
      return MPI_DOUBLE;
    case DType::kI32:
      return MPI_INT32_T;
    case DType::kI64:
      return MPI_INT64_T;
    case DType::kBF16:
    case DType::kI8:
    case DType::kU8:
      break;
  }
  return MPI_DATATYPE_NULL;
}

// Rank 0 holds the number in a window; the others reach it without its taking part.
class MpiCounter final : public SharedCounter {
 public:
  MpiCounter(MPI_Comm comm, int rank, int size, int64_t initial) : rank_(rank), size_(size) {
    const MPI_Aint bytes = rank == 0 ? sizeof(int64_t) : 0;
    int64_t* base = nullptr;
    check(MPI_Win_allocate(bytes, sizeof(int64_t), MPI_INFO_NULL, comm, &base, &window_),
          "make_counter", rank, size, sizeof(int64_t));
    MPI_Win_set_errhandler(window_, MPI_ERRORS_RETURN);
    if (rank == 0) {
      MPI_Win_lock(MPI_LOCK_EXCLUSIVE, 0, 0, window_);
      *base = initial;
      MPI_Win_unlock(0, window_);
    }
    check(MPI_Barrier(comm), "make_counter", rank, size, 0);
    check(MPI_Win_lock_all(0, window_), "make_counter", rank, size, 0);
  }
  ~MpiCounter() override {
    // Freeing waits for all ranks. On the way out of an error they may never come; the job is
    // ending.
    if (std::uncaught_exceptions() > 0) return;
    MPI_Win_unlock_all(window_);
    MPI_Win_free(&window_);
  }
  int64_t fetch_add(int64_t n) override {
    int64_t before = 0;
    check(MPI_Fetch_and_op(&n, &before, MPI_INT64_T, 0, 0, MPI_SUM, window_), "fetch_add", rank_,
          size_, sizeof(n));
    check(MPI_Win_flush(0, window_), "fetch_add", rank_, size_, sizeof(n));
    return before;
  }

 private:
  MPI_Win window_ = MPI_WIN_NULL;
  int rank_;
  int size_;
};

class MpiCommunicator final : public HostCommunicator {
 public:
  // Takes over `comm`.
  MpiCommunicator(MPI_Comm comm, int rank, int size, const CommOptions& options)
      : HostCommunicator(rank, size, options), comm_(comm) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    requests_.reserve(static_cast<size_t>(size) * 2);
    short_part_.reserve(kGatherDirect);
  }
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  std::unique_ptr<Communicator> split(int color, int key) override;
  std::unique_ptr<SharedCounter> make_counter(int64_t initial) override {
    verify_call(Kind::kMakeCounter);
    return std::make_unique<MpiCounter>(comm_, rank(), size(), initial);
  }
  void abort(std::string_view reason, ExitCode code) override;

 protected:
  void exchange(const char* what, std::span<const Piece> send,
                std::span<const Piece> recv) override;
  void gather(const char* what, Piece mine, std::span<const Piece> all) override;
  void send_from(const char* what, Piece data, int root) override;
  void wait_for_all(const char* what) override {
    check(MPI_Barrier(comm_), what, rank(), size(), 0);
  }
  bool native_all_reduce(const char* what, AnyView x, Reduce reduce) override;

 private:
  void finish_requests(const char* what, size_t receives);
  void wait_patiently(const char* what, MPI_Request& request, size_t bytes);

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
  std::vector<Piece> expected_;  // what each receive of `requests_` was posted for
  std::vector<std::byte> short_part_;
  std::vector<Piece> to_all_;         // one per rank
  std::vector<int> counts_, starts_;  // one per rank
};

void MpiCommunicator::exchange(const char* what, std::span<const Piece> send,
                               std::span<const Piece> recv) {
  requests_.clear();
  expected_.clear();
  auto each_piece = [](Piece whole, auto&& visit) {
    for (size_t begin = 0; begin < whole.bytes; begin += kMaxMessage) {
      visit(Piece{whole.data + begin, std::min(kMaxMessage, whole.bytes - begin)});
    }
  };
  // Start with the next rank, so that not all send to rank 0 first.
  for (int step = 1; step < size(); ++step) {
    const int from = (rank() - step + size()) % size();
    each_piece(recv[static_cast<size_t>(from)], [&](Piece piece) {
      expected_.push_back(piece);
      check(MPI_Irecv(piece.data, static_cast<int>(piece.bytes), MPI_BYTE, from, 0, comm_,
                      &requests_.emplace_back()),
            what, rank(), size(), piece.bytes);
    });
  }
  for (int step = 1; step < size(); ++step) {
    const int to = (rank() + step) % size();
    each_piece(send[static_cast<size_t>(to)], [&](Piece piece) {
      check(MPI_Isend(piece.data, static_cast<int>(piece.bytes), MPI_BYTE, to, 0, comm_,
                      &requests_.emplace_back()),
            what, rank(), size(), piece.bytes);
    });
  }
  const Piece& mine = send[static_cast<size_t>(rank())];
  const Piece& own = recv[static_cast<size_t>(rank())];
  if (mine.bytes > 0 && mine.data != own.data) std::memcpy(own.data, mine.data, mine.bytes);
  finish_requests(what, expected_.size());
}

void MpiCommunicator::finish_requests(const char* what, size_t receives) {
  // One at a time: MPI_Waitall of Open MPI 4.1 spins for ever once a request has failed.
  for (size_t i = 0; i < requests_.size(); ++i) {
    MPI_Status status;
    const size_t bytes = i < receives ? expected_[i].bytes : 0;
    check(MPI_Wait(&requests_[i], &status), what, rank(), size(), bytes);
    if (i >= receives) continue;
    int arrived = 0;
    MPI_Get_count(&status, MPI_BYTE, &arrived);
    if (static_cast<size_t>(arrived) != bytes) {
      throw CommError("{}: rank {} of {} expects {} bytes from rank {} and got {}", what, rank(),
                      size(), bytes, status.MPI_SOURCE, arrived);
    }
  }
}

void MpiCommunicator::gather(const char* what, Piece mine, std::span<const Piece> all) {
  // The library's own algorithm for short messages. All ranks see the same sizes and choose alike.
  const auto n = static_cast<size_t>(size());
  size_t total = 0;
  for (size_t r = 0; r < n; ++r) {
    DEGU_DCHECK(all[r].data == all[0].data + total);
    total += all[r].bytes;
  }
  if (total <= kGatherDirect) {
    counts_.resize(n);
    starts_.resize(n);
    for (size_t r = 0; r < n; ++r) {
      counts_[r] = static_cast<int>(all[r].bytes);
      starts_[r] = static_cast<int>(all[r].data - all[0].data);
    }
    // MPI wants MPI_IN_PLACE from all ranks or none; a copy of so little is cheaper than agreeing.
    if (mine.bytes > 0 && mine.data == all[static_cast<size_t>(rank())].data) {
      short_part_.assign(mine.data, mine.data + mine.bytes);
      mine.data = short_part_.data();
    }
    check(MPI_Allgatherv(mine.data, static_cast<int>(mine.bytes), MPI_BYTE, all[0].data,
                         counts_.data(), starts_.data(), MPI_BYTE, comm_),
          what, rank(), size(), total);
    return;
  }
  to_all_.assign(n, mine);
  exchange(what, to_all_, all);
}

void MpiCommunicator::send_from(const char* what, Piece data, int root) {
  for (size_t begin = 0; begin < data.bytes; begin += kMaxMessage) {
    const size_t bytes = std::min(kMaxMessage, data.bytes - begin);
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibcast(data.data + begin, static_cast<int>(bytes), MPI_BYTE, root, comm_, &request),
          what, rank(), size(), bytes);
    wait_patiently(what, request, bytes);
  }
}

// Ranks that follow another's plan may wait for hours, and MPI's own waiting keeps a core busy.
void MpiCommunicator::wait_patiently(const char* what, MPI_Request& request, size_t bytes) {
  const auto begin = std::chrono::steady_clock::now();
  std::chrono::microseconds rest = kShortestRest;
  for (int done = 0;;) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what, rank(), size(), bytes);
    if (done != 0) return;
    if (std::chrono::steady_clock::now() - begin < kEager) continue;
    std::this_thread::sleep_for(rest);
    rest = std::min(2 * rest, kLongestRest);
  }
}

bool MpiCommunicator::native_all_reduce(const char* what, AnyView x, Reduce reduce) {
  const MPI_Datatype type = to_mpi(x.dtype);
  const bool floating = x.dtype == DType::kF32 || x.dtype == DType::kF64;
  // MPI does not say what becomes of a NaN in MAX and MIN; ours do.
  if (type == MPI_DATATYPE_NULL || (floating && reduce != Reduce::kSum)) return false;
  const MPI_Op op = reduce == Reduce::kSum ? MPI_SUM : reduce == Reduce::kMax ? MPI_MAX : MPI_MIN;
  const size_t round = kMaxMessage / size_of(x.dtype);
  const auto elements = static_cast<size_t>(x.elements());
  for (size_t begin = 0; begin < elements; begin += round) {
    const size_t count = std::min(round, elements - begin);
    std::byte* data = static_cast<std::byte*>(x.data) + begin * size_of(x.dtype);
    check(MPI_Allreduce(MPI_IN_PLACE, data, static_cast<int>(count), type, op, comm_), what, rank(),
          size(), count * size_of(x.dtype));
  }
  return true;
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  verify_call(Kind::kSplit);
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, color < 0 ? MPI_UNDEFINED : color, key, &part), "split", rank(),
        size(), 0);
  if (part == MPI_COMM_NULL) return nullptr;
  int part_rank = 0;
  int part_size = 0;
  MPI_Comm_rank(part, &part_rank);
  MPI_Comm_size(part, &part_size);
  return std::make_unique<MpiCommunicator>(part, part_rank, part_size, options());
}

void MpiCommunicator::abort(std::string_view reason, ExitCode code) {
  int world_rank = 0;
  int world_size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size);
  std::fprintf(stderr, "degu: rank %d of %d: %.*s\n", world_rank, world_size,
               static_cast<int>(reason.size()), reason.data());
  std::fflush(nullptr);
  // The launcher clears the job away with SIGTERM; a handler that waits for a good moment would
  // hold it up.
  std::signal(SIGTERM, SIG_DFL);
  MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  std::_Exit(static_cast<int>(code));  // MPI_Abort does not return; the compiler cannot know
}

}  // namespace

bool mpi_built() {
  return true;
}

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string_view whole(text.data(), static_cast<size_t>(length));
  return std::string(whole.substr(0, whole.find_first_of(",\n")));
}

std::unique_ptr<Communicator> make_mpi_communicator(const CommOptions& options) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) {
    int provided = MPI_THREAD_SINGLE;
    const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    if (code != MPI_SUCCESS || provided < MPI_THREAD_FUNNELED) {
      throw CommError(
          "MPI_Init_thread failed (code {}, thread level {}): check the MPI installation", code,
          provided);
    }
    started_mpi = true;
  }
  MPI_Comm all = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &all), "MPI_Comm_dup", 0, 0, 0);
  int rank = 0;
  int size = 1;
  MPI_Comm_rank(all, &rank);
  MPI_Comm_size(all, &size);
  return std::make_unique<MpiCommunicator>(all, rank, size, options);
}

void finalize_mpi() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (started_mpi && finalized == 0) MPI_Finalize();
  started_mpi = false;
}

}  // namespace degu
