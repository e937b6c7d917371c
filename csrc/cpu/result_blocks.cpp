#include "cpu/result_blocks.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/pages.h"

namespace fastmed {
namespace {

#ifdef __linux__

ResultBlock* map_block(int64_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  advise_huge_pages(data, bytes);
  return new ResultBlock{data, bytes};
}

void unmap_block(ResultBlock* block) {
  munmap(block->data, block->bytes);
  delete block;
}

#else

ResultBlock* map_block(int64_t) { return nullptr; }
void unmap_block(ResultBlock* block) { delete block; }

#endif

// A block twice as large does: better in use than kept beside a new one.
bool fits(const ResultBlock& block, int64_t bytes) { return block.bytes >= bytes && block.bytes / 2 <= bytes; }

}  // namespace

ResultBlock* ResultBlocks::take(int64_t bytes) {
  ResultBlock* const kept = take_kept(bytes);
  return kept ? kept : map_block(bytes);
}

ResultBlock* ResultBlocks::take_kept(int64_t bytes) {
  const uint64_t next = next_place_.load(std::memory_order_relaxed);
  for (uint64_t i = 1; i <= kPlaces; ++i) {  // what was freed last may still be in the caches
    std::atomic<ResultBlock*>& place = shelf_[(next - i) % kPlaces];
    if (!place.load(std::memory_order_relaxed)) continue;
    ResultBlock* const block = place.exchange(nullptr);
    if (!block) continue;
    if (fits(*block, bytes)) {
      kept_ -= block->bytes;
      return block;
    }
    ResultBlock* nothing = nullptr;
    if (place.compare_exchange_strong(nothing, block)) continue;
    kept_ -= block->bytes;  // somebody put another there meanwhile
    unmap_block(block);
  }
  return nullptr;
}

void ResultBlocks::give_back(ResultBlock* block) {
  if (block->bytes > limit()) return unmap_block(block);
  kept_ += block->bytes;
  ResultBlock* const displaced = shelf_[next_place_++ % kPlaces].exchange(block);
  if (displaced) {
    kept_ -= displaced->bytes;
    unmap_block(displaced);
  }
  shrink_to_limit();
}

int64_t ResultBlocks::set_limit(int64_t bytes) {
  const int64_t before = limit_.exchange(bytes);
  shrink_to_limit();
  return before;
}

void ResultBlocks::shrink_to_limit() {
  const uint64_t oldest = next_place_.load(std::memory_order_relaxed);
  for (uint64_t i = 0; i < kPlaces && kept_ > limit(); ++i) {
    ResultBlock* const block = shelf_[(oldest + i) % kPlaces].exchange(nullptr);
    if (!block) continue;
    kept_ -= block->bytes;
    unmap_block(block);
  }
}

}  // namespace fastmed
