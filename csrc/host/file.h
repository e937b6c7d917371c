// Files by descriptor: opened once, read at offsets, from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "host/source.h"

namespace fastmed::host {

// An open file; `error` is errno where it could not be opened.
class File {
 public:
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int error() const { return error_; }
  uint64_t size() const { return size_; }

  // Reads up to `count` bytes at `offset`; fewer at the end of the file. Sets `error` where reading fails.
  size_t read(uint64_t offset, void* to, size_t count);

 private:
  int descriptor_;
  int error_ = 0;
  uint64_t size_ = 0;
};

// A file seen through a buffer that the caller keeps, so that many files share one.
class FileSource : public Source {
 public:
  // 16 KB hold the header of most slices; what lies behind is read where it is asked for.
  static constexpr size_t kWindow = size_t{1} << 14;

  FileSource(File& file, std::vector<uint8_t>& buffer);

 protected:
  const uint8_t* fetch(uint64_t offset, size_t count) override;

 private:
  File& file_;
  std::vector<uint8_t>& buffer_;
  uint64_t start_ = 0;
  size_t filled_ = 0;
};

}  // namespace fastmed::host
