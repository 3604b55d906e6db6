#include "comm/thread_comm.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "comm/host_communicator.h"

namespace degu {
namespace {

// State of all threads of one run_as_threads, whatever groups they have formed. One lock and one
// condition for everything: these groups are small and short-lived.
struct Job {
  explicit Job(int ranks) : returned(static_cast<size_t>(ranks)) {}

  void fail(int rank, const std::string& why, std::exception_ptr error) {
    std::lock_guard lock(mutex);
    if (failed) return;
    failed = true;
    reason = fmt::format("rank {} failed: {}", rank, why);
    first_error = std::move(error);
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  bool failed = false;
  std::string reason;
  std::exception_ptr first_error;
  std::vector<char> returned;  // by rank of the job
};

// What the members of one group see of each other: between two barriers each may read what all
// published.
struct Group {
  Group(std::shared_ptr<Job> j, std::vector<int> m)
      : job(std::move(j)), members(std::move(m)), slots(members.size()) {}

  struct Slot {
    std::span<const Piece> pieces;
    int64_t first = 0, second = 0;
    std::shared_ptr<void> object;
  };

  std::shared_ptr<Job> job;
  std::vector<int> members;  // ranks of the job
  std::vector<Slot> slots;
  int arrived = 0;
  uint64_t generation = 0;
};

class ThreadCounter final : public SharedCounter {
 public:
  explicit ThreadCounter(std::shared_ptr<std::atomic<int64_t>> value) : value_(std::move(value)) {}
  int64_t fetch_add(int64_t n) override { return value_->fetch_add(n); }

 private:
  std::shared_ptr<std::atomic<int64_t>> value_;
};

class ThreadCommunicator final : public HostCommunicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank, const CommOptions& options)
      : HostCommunicator(rank, static_cast<int>(group->members.size()), options),
        group_(std::move(group)) {}

  std::unique_ptr<Communicator> split(int color, int key) override;
  std::unique_ptr<SharedCounter> make_counter(int64_t initial) override;
  void abort(std::string_view reason, ExitCode code) override {
    const Error error(code, std::string(reason));
    group_->job->fail(group_->members[static_cast<size_t>(rank())], error.what(),
                      std::make_exception_ptr(error));
    throw error;
  }

 protected:
  void exchange(const char* what, std::span<const Piece> send,
                std::span<const Piece> recv) override;
  void gather(const char* what, Piece mine, std::span<const Piece> all) override;
  void send_from(const char* what, Piece data, int root) override;
  void wait_for_all(const char* what) override;

 private:
  Group::Slot& slot(int r) { return group_->slots[static_cast<size_t>(r)]; }
  // Remembers a disagreement; `leave` throws it.
  void copy(const char* what, int from, Piece source, Piece target) {
    if (source.bytes != target.bytes) {
      mismatch_ = fmt::format("{}: rank {} sends {} bytes to rank {} of {}, which expects {}", what,
                              from, source.bytes, rank(), size(), target.bytes);
      return;
    }
    if (source.bytes > 0 && source.data != target.data) {
      std::memcpy(target.data, source.data, source.bytes);
    }
  }
  void meet(const char* what, bool certain);
  // The barrier after which others' memory is no longer read. Everyone is between the two barriers
  // and will come, so it is waited for even when the job has failed: nobody frees what another is
  // reading.
  void leave(const char* what) {
    meet(what, /*certain=*/true);
    if (!mismatch_.empty()) throw CommError("{}", mismatch_);
  }
  std::shared_ptr<Group> group_;
  std::string mismatch_;
};

void ThreadCommunicator::wait_for_all(const char* what) {
  meet(what, /*certain=*/false);
}

void ThreadCommunicator::meet(const char* what, bool certain) {
  Job& job = *group_->job;
  std::unique_lock lock(job.mutex);
  if (job.failed && !certain) throw CommError("{}: {}", what, job.reason);
  const uint64_t mine = group_->generation;
  if (++group_->arrived == size()) {
    group_->arrived = 0;
    ++group_->generation;
    job.changed.notify_all();
    return;
  }
  while (group_->generation == mine) {
    if (certain) {
      job.changed.wait(lock);
      continue;
    }
    if (job.failed) throw CommError("{}: {}", what, job.reason);
    for (int member : group_->members) {
      if (job.returned[static_cast<size_t>(member)]) {
        throw CommError("{}: rank {} has returned and will not take part", what, member);
      }
    }
    job.changed.wait(lock);
  }
}

void ThreadCommunicator::exchange(const char* what, std::span<const Piece> send,
                                  std::span<const Piece> recv) {
  slot(rank()).pieces = send;
  wait_for_all(what);
  for (int r = 0; r < size(); ++r) {
    copy(what, r, slot(r).pieces[static_cast<size_t>(rank())], recv[static_cast<size_t>(r)]);
  }
  leave(what);
}

void ThreadCommunicator::gather(const char* what, Piece mine, std::span<const Piece> all) {
  slot(rank()).pieces = {&mine, 1};
  wait_for_all(what);
  for (int r = 0; r < size(); ++r) copy(what, r, slot(r).pieces[0], all[static_cast<size_t>(r)]);
  leave(what);
}

void ThreadCommunicator::send_from(const char* what, Piece data, int root) {
  slot(rank()).pieces = {&data, 1};
  wait_for_all(what);
  copy(what, root, slot(root).pieces[0], data);
  leave(what);
}

std::unique_ptr<Communicator> ThreadCommunicator::split(int color, int key) {
  verify_call(Kind::kSplit);
  slot(rank()).first = color;
  slot(rank()).second = key;
  wait_for_all("split");
  std::vector<int> members;  // ranks of this group
  for (int r = 0; r < size(); ++r) {
    if (slot(r).first == color) members.push_back(r);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](int a, int b) { return slot(a).second < slot(b).second; });
  leave("split");
  if (color >= 0 && members.front() == rank()) {
    std::vector<int> job_ranks;
    job_ranks.reserve(members.size());
    for (int r : members) job_ranks.push_back(group_->members[static_cast<size_t>(r)]);
    slot(rank()).object = std::make_shared<Group>(group_->job, std::move(job_ranks));
  }
  wait_for_all("split");
  std::shared_ptr<Group> joined;
  if (color >= 0) joined = std::static_pointer_cast<Group>(slot(members.front()).object);
  wait_for_all("split");
  slot(rank()).object = nullptr;
  if (!joined) return nullptr;
  const auto place = std::find(members.begin(), members.end(), rank()) - members.begin();
  return std::make_unique<ThreadCommunicator>(std::move(joined), static_cast<int>(place),
                                              options());
}

std::unique_ptr<SharedCounter> ThreadCommunicator::make_counter(int64_t initial) {
  verify_call(Kind::kMakeCounter);
  if (rank() == 0) slot(0).object = std::make_shared<std::atomic<int64_t>>(initial);
  wait_for_all("make_counter");
  auto value = std::static_pointer_cast<std::atomic<int64_t>>(slot(0).object);
  wait_for_all("make_counter");
  if (rank() == 0) slot(0).object = nullptr;
  return std::make_unique<ThreadCounter>(std::move(value));
}

}  // namespace

void run_as_threads(int ranks, const std::function<void(Communicator&)>& body,
                    const CommOptions& options) {
  if (ranks < 1) throw ConfigError("run_as_threads: {} ranks", ranks);
  auto job = std::make_shared<Job>(ranks);
  std::vector<int> members(static_cast<size_t>(ranks));
  std::iota(members.begin(), members.end(), 0);
  auto group = std::make_shared<Group>(job, members);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        ThreadCommunicator communicator(group, r, options);
        body(communicator);
      } catch (const std::exception& error) {
        job->fail(r, error.what(), std::current_exception());
      } catch (...) {
        job->fail(r, "unknown exception", std::current_exception());
      }
      std::lock_guard lock(job->mutex);
      job->returned[static_cast<size_t>(r)] = 1;
      job->changed.notify_all();
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (job->first_error) std::rethrow_exception(job->first_error);
}

}  // namespace degu
