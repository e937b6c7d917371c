// Files by descriptor: opened once, read at offsets, from any thread.
#include "host/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace fastmed::host {

File::File(const std::string& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  struct stat status;
  if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) {
    error_ = errno;
  } else {
    size_ = static_cast<uint64_t>(std::max<off_t>(status.st_size, 0));
  }
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

size_t File::read(uint64_t offset, void* to, size_t count) {
  size_t done = 0;
  while (done < count) {
    const ssize_t got = ::pread(descriptor_, static_cast<char*>(to) + done, count - done, static_cast<off_t>(offset + done));
    if (got > 0) {
      done += static_cast<size_t>(got);
    } else if (got == 0) {
      break;
    } else if (errno != EINTR) {
      error_ = errno;
      break;
    }
  }
  return done;
}

FileSource::FileSource(File& file, std::vector<uint8_t>& buffer) : Source(file.size()), file_(file), buffer_(buffer) {
  buffer_.resize(kWindow);
}

const uint8_t* FileSource::fetch(uint64_t offset, size_t count) {
  if (count > buffer_.size()) return nullptr;
  if (offset < start_ || offset - start_ > filled_ || count > filled_ - (offset - start_)) {
    start_ = offset;
    filled_ = file_.read(offset, buffer_.data(), buffer_.size());
    if (filled_ < count) return nullptr;
  }
  return buffer_.data() + (offset - start_);
}

}  // namespace fastmed::host
