// Pixels: uncompressed slices from their files into one array, each in a single pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastmed::host {

// How stored pixels become values. bytes: of one pixel, 1, 2 or 4; unused_bits: high bits that are no part of it.
struct PixelType {
  int bytes;
  bool is_signed;
  bool swap;
  int unused_bits;
};

// One slice: values from low to high are padding and become `air`; none are where low > high.
struct Slice {
  std::string path;
  uint64_t offset;
  int64_t low, high, air;
};

// What became of a slice: bytes that its file held, errno where it could not be read, pixels that were padding.
struct SliceRead {
  size_t bytes = 0;
  int error = 0;
  int64_t padded = 0;
};

// Reads each slice into `voxels` + its index x slice_bytes, which is a multiple of the pixel's bytes.
std::vector<SliceRead> read_slices(const std::vector<Slice>& slices, const PixelType& type, uint8_t* voxels,
                                   size_t slice_bytes, size_t threads);

}  // namespace fastmed::host
