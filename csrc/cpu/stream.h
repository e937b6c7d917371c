// Writes past the caches: memory that is overwritten in whole lines need not be read first.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace fastmed {

#if defined(__x86_64__) && defined(__GNUC__)

// Results of less are better left in the caches, where the next step finds them.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

// To an address that is a multiple of the vector's size. finish_streaming must follow before another thread reads it.
template <class Vector>
FASTMED_HD void stream_store(void* to, const Vector& value) {
  if constexpr (sizeof(Vector) == 64) {
    asm volatile("vmovntps %1, %0" : "=m"(*static_cast<Vector*>(to)) : "v"(value));
  } else if constexpr (sizeof(Vector) == 32) {
    asm volatile("vmovntps %1, %0" : "=m"(*static_cast<Vector*>(to)) : "x"(value));
  } else {
    static_assert(sizeof(Vector) == 16);
    asm volatile("movntps %1, %0" : "=m"(*static_cast<Vector*>(to)) : "x"(value));
  }
}

inline void finish_streaming() { asm volatile("sfence" ::: "memory"); }

#else

constexpr int64_t kStreamedBytes = INT64_MAX;

template <class Vector>
FASTMED_HD void stream_store(void* to, const Vector& value) {
  *static_cast<Vector*>(to) = value;
}

inline void finish_streaming() {}

#endif

}  // namespace fastmed
