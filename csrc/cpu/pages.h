// Fresh memory in pages of 2 MB: the first write to each 4 KB page would cost more than what is written to it.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <fstream>

namespace fastmed {

// Some hypervisors take whole free blocks back after a second or two: then fresh huge pages come from outside the
// machine and cost five times what small ones do, which are seldom given back.
inline bool free_pages_leave_the_machine() {
  std::ifstream file("/sys/module/page_reporting/parameters/page_reporting_order");
  int64_t order = -1;
  constexpr int64_t kHighestOrder = 10;  // an unused one reads as -1 or 2**32 - 1
  return file >> order && order >= 0 && order <= kHighestOrder;
}

// To be called before the first write. Where the system grants no huge pages, nothing changes.
inline void advise_huge_pages([[maybe_unused]] const void* fresh, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  static const bool dear = free_pages_leave_the_machine();
  if (dear) return;
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  const auto begin = reinterpret_cast<uintptr_t>(fresh);
  const uintptr_t end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace fastmed
