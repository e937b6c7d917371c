// Blocks of mapped memory, kept when they are given back, up to a limit.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace fastmed {

struct ResultBlock {
  void* data;
  int64_t bytes;
};

// Without a lock, so that a process may fork at any time: whoever takes a block off the shelf owns it alone.
class ResultBlocks {
 public:
  // A block of at least so many bytes, kept or new; nullptr where the system gives none.
  ResultBlock* take(int64_t bytes);

  // Keeps the block; what exceeds the limit then is unmapped, the longest kept first.
  void give_back(ResultBlock* block);

  // Returns the limit before. What is kept above the new one is unmapped.
  int64_t set_limit(int64_t bytes);

  int64_t limit() const { return limit_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kPlaces = 16;
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kDefaultLimit = 0;  // writes behind the end are found in malloc's blocks alone
#else
  static constexpr int64_t kDefaultLimit = int64_t{256} << 20;
#endif

  ResultBlock* take_kept(int64_t bytes);
  void shrink_to_limit();

  std::array<std::atomic<ResultBlock*>, kPlaces> shelf_{};
  std::atomic<uint64_t> next_place_{0};
  std::atomic<int64_t> kept_{0}, limit_{kDefaultLimit};
};

}  // namespace fastmed
