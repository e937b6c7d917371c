// DICOM RLE: one grey frame, decoded byte plane by byte plane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastmed::host {

// Decodes a frame into pixels of `pixel_bytes` bytes, little endian. False where a segment does not hold exactly one
// byte of each pixel; what `pixels` holds is then undefined.
bool decode_rle(std::span<const uint8_t> frame, std::span<uint8_t> pixels, size_t pixel_bytes);

}  // namespace fastmed::host
