// What the fuzzers run: a header and its fragments are read from bytes, and what is said of them must be true.
#include "host/fuzz/target.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "host/header.h"
#include "host/rle.h"

namespace fastmed::host {
namespace {

constexpr std::array<uint32_t, 8> kTags = {0x00080008, 0x00080016, 0x00080060, 0x0020000E,
                                           0x00200032, 0x00280010, 0x00280100, 0x00281053};

// Every answer is a block of its own, so that a sanitizer sees one byte read too many.
class GuardedSource : public Source {
 public:
  explicit GuardedSource(const std::vector<uint8_t>& bytes) : Source(bytes.size()), bytes_(bytes) {}

 protected:
  const uint8_t* fetch(uint64_t offset, size_t count) override {
    block_ = std::make_unique_for_overwrite<uint8_t[]>(count);
    if (count > 0) std::memcpy(block_.get(), bytes_.data() + offset, count);
    return block_.get();
  }

 private:
  const std::vector<uint8_t>& bytes_;
  std::unique_ptr<uint8_t[]> block_;
};

void require(bool is_true) {
  if (!is_true) std::abort();
}

}  // namespace

void read_as_dicom(const uint8_t* data, size_t size) {
  std::vector<uint8_t> bytes(132 + size);
  std::memcpy(bytes.data() + 128, "DICM", 4);
  if (size > 0) std::memcpy(bytes.data() + 132, data, size);
  GuardedSource source(bytes);
  const auto header = read_header(source, kTags);
  if (!header) return;
  require(header->values.size() == kTags.size());
  require(header->pixel_offset <= bytes.size());
  require(header->has_pixels == (header->pixel_offset > 0));
  if (!header->has_pixels) return;
  const auto fragments = read_fragments(source, header->pixel_offset);
  if (!fragments) return;
  uint64_t behind = header->pixel_offset;
  for (const Fragment& fragment : *fragments) {
    require(fragment.offset == behind + 8);
    behind = fragment.offset + fragment.length;
    require(behind <= bytes.size());
    for (size_t pixel_bytes = 1; pixel_bytes <= 2; ++pixel_bytes) {
      std::vector<uint8_t> pixels(16 * pixel_bytes);
      const std::vector<uint8_t> frame(bytes.begin() + fragment.offset, bytes.begin() + behind);
      decode_rle(frame, pixels, pixel_bytes);
    }
  }
}

}  // namespace fastmed::host
