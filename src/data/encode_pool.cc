#include "data/encode_pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

namespace degu {

EncodePool::EncodePool(const Tokenizer& tokenizer, int threads) {
  for (int t = 0; t < std::max(threads, 1); ++t) encoders_.emplace_back(tokenizer);
}

void EncodePool::encode(std::span<const Document> documents,
                        std::vector<std::vector<int32_t>>& ids) {
  ids.resize(documents.size());
  std::atomic<size_t> next = 0;
  std::vector<std::exception_ptr> errors(encoders_.size());
  const auto work = [&](size_t thread) {
    try {
      for (size_t i = next++; i < documents.size(); i = next++) {
        ids[i].clear();
        encoders_[thread].append(documents[i].text, ids[i]);
      }
    } catch (...) {
      errors[thread] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (size_t t = 1; t < std::min(encoders_.size(), documents.size()); ++t)
    threads.emplace_back(work, t);
  work(0);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace degu
