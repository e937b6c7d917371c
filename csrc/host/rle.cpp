// DICOM RLE: one grey frame, decoded byte plane by byte plane.
#include "host/rle.h"

#include "host/elements.h"

namespace fastmed::host {
namespace {

constexpr size_t kHeader = 64;  // the number of segments and the offsets of up to 15

// Writes one byte of each pixel, from the first pixel's at `to` on.
bool decode_segment(std::span<const uint8_t> segment, uint8_t* to, size_t pixels, size_t stride) {
  size_t at = 0, done = 0;
  while (done < pixels) {
    if (at == segment.size()) return false;
    const uint8_t code = segment[at++];
    if (code == 128) continue;
    const size_t count = code < 128 ? size_t{code} + 1 : size_t{257} - code;
    const size_t needed = code < 128 ? count : 1;
    if (needed > segment.size() - at || count > pixels - done) return false;
    if (code < 128) {
      for (size_t k = 0; k < count; ++k) to[(done + k) * stride] = segment[at + k];
    } else {
      const uint8_t value = segment[at];
      for (size_t k = 0; k < count; ++k) to[(done + k) * stride] = value;
    }
    at += needed;
    done += count;
  }
  return true;
}

}  // namespace

bool decode_rle(std::span<const uint8_t> frame, std::span<uint8_t> pixels, size_t pixel_bytes) {
  if (pixel_bytes == 0 || pixel_bytes > 15 || pixels.size() % pixel_bytes || frame.size() < kHeader) return false;
  if (read_u32(frame.data(), true) != pixel_bytes) return false;
  for (size_t plane = 0; plane < pixel_bytes; ++plane) {
    const uint8_t* entry = frame.data() + 4 * (plane + 1);
    const size_t start = read_u32(entry, true);
    const size_t end = plane + 1 < pixel_bytes ? read_u32(entry + 4, true) : frame.size();
    if (start < kHeader || start > end || end > frame.size()) return false;
    uint8_t* to = pixels.data() + (pixel_bytes - 1 - plane);  // the highest byte comes first
    if (!decode_segment(frame.subspan(start, end - start), to, pixels.size() / pixel_bytes, pixel_bytes)) return false;
  }
  return true;
}

}  // namespace fastmed::host
