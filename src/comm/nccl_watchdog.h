// Watches collectives that are under way on a GPU: they surface their own failures nowhere else.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// NCCL's and CUDA's handles are pointers to these.
struct ncclComm;
struct CUstream_st;
struct CUevent_st;

namespace degu {

// One per process. A thread looks at the oldest collectives ten times a second; when one has failed
// or has been under way for too long it prints a line and ends the process, which ends the job.
class NcclWatchdog {
 public:
  NcclWatchdog();
  ~NcclWatchdog();
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  // A collective that was just put on `stream`.
  void watch(ncclComm* comm, CUstream_st* stream, std::string what);
  // Forgets the collectives of a communicator that is about to go.
  void forget(ncclComm* comm);

 private:
  struct Pending {
    ncclComm* comm;
    CUevent_st* done;
    std::string what;
    double since;
  };
  void loop();
  void look();

  int device_ = 0;
  double limit_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::deque<Pending> pending_;
  std::vector<CUevent_st*> idle_;
  std::thread thread_;
};

}  // namespace degu
