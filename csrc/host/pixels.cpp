// Pixels: uncompressed slices from their files into one array, each in a single pass.
#include "host/pixels.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "host/file.h"
#include "host/parallel.h"

namespace fastmed::host {
namespace {

// A block is still in the core's cache when its pixels are looked at.
constexpr size_t kBlock = size_t{1} << 17;

template <class Pixel>
Pixel swapped(Pixel pixel) {
  using Bits = std::make_unsigned_t<Pixel>;
  const auto bits = static_cast<Bits>(pixel);
  if constexpr (sizeof(Pixel) == 1) return pixel;
  if constexpr (sizeof(Pixel) == 2) return static_cast<Pixel>(static_cast<Bits>(bits << 8 | bits >> 8));
  if constexpr (sizeof(Pixel) == 4) {
    return static_cast<Pixel>(bits << 24 | (bits & 0xFF00) << 8 | (bits >> 8 & 0xFF00) | bits >> 24);
  }
}

// Returns how many pixels were padding.
template <class Pixel>
int64_t finish(Pixel* pixels, size_t count, const PixelType& type, const Slice& slice) {
  using Bits = std::make_unsigned_t<Pixel>;
  if (type.swap) {
    for (size_t k = 0; k < count; ++k) pixels[k] = swapped(pixels[k]);
  }
  if (type.unused_bits > 0) {
    for (size_t k = 0; k < count; ++k) {
      const auto high = static_cast<Pixel>(static_cast<Bits>(static_cast<Bits>(pixels[k]) << type.unused_bits));
      pixels[k] = static_cast<Pixel>(high >> type.unused_bits);
    }
  }
  if (slice.low > slice.high) return 0;
  const auto low = static_cast<Pixel>(slice.low), high = static_cast<Pixel>(slice.high);
  const auto air = static_cast<Pixel>(slice.air);
  int64_t padded = 0;
  constexpr size_t kRun = 4096;  // counted in a narrow integer, so that the loop vectorises
  for (size_t start = 0; start < count; start += kRun) {
    const size_t end = std::min(start + kRun, count);
    Bits found = 0;
    int wide = 0;
    for (size_t k = start; k < end; ++k) {
      const bool is_padding = (pixels[k] >= low) & (pixels[k] <= high);
      if constexpr (sizeof(Pixel) > 1) found = static_cast<Bits>(found + is_padding);
      if constexpr (sizeof(Pixel) == 1) wide += is_padding;
      pixels[k] = is_padding ? air : pixels[k];
    }
    padded += static_cast<int64_t>(found) + wide;
  }
  return padded;
}

template <class Pixel>
SliceRead read_slice(const Slice& slice, const PixelType& type, uint8_t* to, size_t bytes) {
  SliceRead result;
  File file(slice.path);
  const bool as_stored = !type.swap && type.unused_bits == 0 && slice.low > slice.high;
  const size_t block = as_stored ? bytes : kBlock;
  while (file.error() == 0 && result.bytes < bytes) {
    const size_t wanted = std::min(block, bytes - result.bytes);
    const size_t got = file.read(slice.offset + result.bytes, to + result.bytes, wanted);
    if (!as_stored) {
      result.padded += finish(reinterpret_cast<Pixel*>(to + result.bytes), got / sizeof(Pixel), type, slice);
    }
    result.bytes += got;
    if (got < wanted) break;
  }
  result.error = file.error();
  return result;
}

using ReadSlice = SliceRead (*)(const Slice&, const PixelType&, uint8_t*, size_t);

ReadSlice reader_of(const PixelType& type) {
  if (type.bytes == 1) return type.is_signed ? &read_slice<int8_t> : &read_slice<uint8_t>;
  if (type.bytes == 2) return type.is_signed ? &read_slice<int16_t> : &read_slice<uint16_t>;
  return type.is_signed ? &read_slice<int32_t> : &read_slice<uint32_t>;
}

}  // namespace

std::vector<SliceRead> read_slices(const std::vector<Slice>& slices, const PixelType& type, uint8_t* voxels,
                                   size_t slice_bytes, size_t threads) {
  std::vector<SliceRead> results(slices.size());
  const ReadSlice read = reader_of(type);
  parallel(slices.size(), threads, [&] {
    return [&](size_t k) { results[k] = read(slices[k], type, voxels + k * slice_bytes, slice_bytes); };
  });
  return results;
}

}  // namespace fastmed::host
