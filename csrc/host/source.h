// Source: bytes at an offset, from a file or from memory, never more of them than there are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmed::host {

class Source {
 public:
  virtual ~Source() = default;

  uint64_t size() const { return size_; }

  // `count` bytes from `offset` on, valid until the next call; null where the source ends before or cannot be read.
  const uint8_t* at(uint64_t offset, size_t count) {
    if (offset > size_ || count > size_ - offset) return nullptr;
    return fetch(offset, count);
  }

 protected:
  explicit Source(uint64_t size) : size_(size) {}

  virtual const uint8_t* fetch(uint64_t offset, size_t count) = 0;

 private:
  uint64_t size_;
};

}  // namespace fastmed::host
