// Straight grids of integers: each plane of the volume is interpolated along y and x once, then planes blend along z.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/gather.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "cpu/stream.h"
#include "math/sampling.h"

namespace fastmed {

template <class Real>
struct PlaneWeights {
  Real low, high, bias;
};

// Two planes become output: clamp(low * weight + high * weight + bias), in vectors of kBytes where they are streamed.
template <class Real, int kBytes, bool kStream, bool kClamped, bool kFused>
struct BlendPlanes {
  FASTMED_HD static void run(const Real* __restrict low, const Real* __restrict high, PlaneWeights<Real> weights,
                             int64_t length, Real* __restrict out) {
    int64_t first = 0;
    if constexpr (kStream) {
      using Vector = typename Lanes<Real, kBytes>::Vector;
      constexpr int64_t kCount = Lanes<Real, kBytes>::kCount;
      while (first < length && reinterpret_cast<uintptr_t>(out + first) % kBytes != 0) {
        out[first] = blend(low[first], high[first], weights);
        ++first;
      }
      for (; first + kCount <= length; first += kCount) {
        Vector value;
        for (int lane = 0; lane < kCount; ++lane) value[lane] = blend(low[first + lane], high[first + lane], weights);
        stream_store(out + first, value);
      }
    }
    for (int64_t i = first; i < length; ++i) out[i] = blend(low[i], high[i], weights);
  }

 private:
  FASTMED_HD static Real blend(Real low, Real high, const PlaneWeights<Real>& weights) {
    const Real part = multiply_add<kFused>(weights.high, high, weights.bias);
    const Real value = multiply_add<kFused>(weights.low, low, part);
    if (!kClamped) return value;
    // One instruction each, which would turn NaN into 0: voxels here are integers, so none is NaN.
    const Real above = value > Real(0) ? value : Real(0);
    return above < Real(1) ? above : Real(1);
  }
};

// Writes the rows of one tile, a few neighbours in y that two interpolated planes of fit the cache, for one z after
// another.
template <class Voxel, class Real>
class PlaneSampler {
  static_assert(std::is_integral_v<Voxel>, "NaN would not stay NaN, and blends read what weighs nothing");

 public:
  // Rows of output of this length that make a tile.
  static int64_t tile_rows(int64_t width) { return std::max<int64_t>(1, kTileBytes / (width * sizeof(Real))); }

  // Whether one new plane of the volume serves an output plane, or fewer. Linear, without fill, axis-aligned.
  static bool pays(const Matrix& matrix, const int64_t* size, int32_t length) {
    const double last = row_start(matrix, 0, static_cast<double>(size[0] - 1), 0.0);
    const double reach = clamp_position(last, 0.0, length - 1.0) - clamp_position(matrix.rows[0][3], 0.0, length - 1.0);
    return std::abs(reach) <= static_cast<double>(size[0]);
  }

  void start(VolumeView<Voxel> volume, const Matrix& matrix, const int64_t* size, const Intensity<Real>& intensity) {
    volume_ = volume;
    matrix_ = matrix;
    intensity_ = intensity;
    width_ = size[2];
    taps_ = AxisTable<Real>(width_);
    for (int64_t x = 0; x < width_; ++x) {
      const double position = matrix.rows[2][3] + matrix.rows[2][2] * static_cast<double>(x);
      taps_.set(x, edge_tap<Real>(position, volume.lengths[2]));
    }
    const auto [first, last] = taps_.range();
    taps_.move(-first);
    first_ = first;
    columns_ = last - first + 1;
    line_.resize(RowInterpolator<Real>::padded(columns_));
    interpolator_.prepare(taps_);
    if (interpolator_.writes()) interpolator_.prepare_writing({Real(1), Real(0), Real(0), false});
    for (auto& plane : planes_) plane.resize(RowInterpolator<Real>::padded(tile_rows(width_) * width_));
    held_ = {-1, -1};
  }

  // Rows first to last of output plane z; the next call is expected to ask for the same rows of plane z + 1.
  void write(int64_t z, int64_t first, int64_t last, bool stream, Real* out) {
    if (first != tile_) held_ = {-1, -1};
    tile_ = first;
    const auto [low, high, weights] = planes_of(z);
    const int at_low = held_[0] == low ? 0 : held_[1] == low ? 1 : held_[0] == high ? 1 : 0;
    const int at_high = high == low ? at_low : 1 - at_low;
    const bool fresh_low = held_[at_low] != low, fresh_high = held_[at_high] != high && high != low;
    held_[at_low] = low;
    held_[at_high] = high;
    const PlaneTap next = planes_of(z + 1);
    const int32_t ahead = next.low != low && next.low != high ? next.low : next.high;
    const bool coming = ahead != low && ahead != high;
    const Voxel* const ahead_rows = volume_.data + ahead * volume_.stride_z + first_;
    int32_t fetched = -1;

    const Real* const plane_low = planes_[at_low].data();
    const Real* const plane_high = planes_[at_high].data();
    int64_t done = 0;
    for (int64_t y = first; y < last; ++y) {
      const Tap<Real> tap = edge_tap<Real>(row_start(matrix_, 1, 0.0, static_cast<double>(y)), volume_.lengths[1]);
      if (fresh_low) interpolate(at_low, low, tap, y - first);
      if (fresh_high) interpolate(at_high, high, tap, y - first);
      if (coming) {
        if (tap.low != fetched) prefetch(ahead_rows + tap.low * volume_.stride_y);
        if (tap.high != tap.low) prefetch(ahead_rows + tap.high * volume_.stride_y);
        fetched = tap.high;
      }
      int64_t end = (y + 1 - first) * width_;
      if (stream && y + 1 < last) {  // the line that the next row begins in is written once
        end -= reinterpret_cast<uintptr_t>(out + end) % kLineBytes / static_cast<int64_t>(sizeof(Real));
        if (end <= done) continue;
      }
      stream ? blend<true>(plane_low + done, plane_high + done, weights, end - done, out + done)
             : blend<false>(plane_low + done, plane_high + done, weights, end - done, out + done);
      done = end;
    }
  }

 private:
  static constexpr int64_t kTileBytes = int64_t{96} << 10;  // two planes and the voxels of the next fit a second cache
  static constexpr int64_t kLineBytes = 64;

  struct PlaneTap {
    int32_t low, high;
    PlaneWeights<Real> weights;
  };

  PlaneTap planes_of(int64_t z) const {
    const Tap<Real> tap = edge_tap<Real>(row_start(matrix_, 0, static_cast<double>(z), 0.0), volume_.lengths[0]);
    return {tap.weight_low == Real(0) ? tap.high : tap.low, tap.weight_high == Real(0) ? tap.low : tap.high,
            {tap.weight_low * intensity_.gain, tap.weight_high * intensity_.gain, intensity_.bias}};
  }

  void interpolate(int slot, int32_t z, const Tap<Real>& tap, int64_t row) {
    const Voxel* const plane = volume_.data + z * volume_.stride_z + first_;
    const Voxel* const rows[2] = {plane + tap.low * volume_.stride_y, plane + tap.high * volume_.stride_y};
    const Real weights[2] = {tap.weight_low, tap.weight_high};
    blend_rows(rows, weights, 2, columns_, line_.data());
    Real* const out = planes_[slot].data() + row * width_;
    interpolator_.writes() ? interpolator_.write(line_.data(), out) : interpolator_.interpolate(line_.data(), out);
  }

  void prefetch(const Voxel* row) const {
    constexpr int64_t kVoxelsPerLine = 64 / sizeof(Voxel);
    for (int64_t x = 0; x < columns_; x += kVoxelsPerLine) __builtin_prefetch(row + x);
  }

  template <bool kStream>
  void blend(const Real* low, const Real* high, const PlaneWeights<Real>& weights, int64_t length, Real* out) const {
    intensity_.clamped ? blend<kStream, true>(low, high, weights, length, out)
                       : blend<kStream, false>(low, high, weights, length, out);
  }

  template <bool kStream, bool kClamped>
  static void blend(const Real* low, const Real* high, PlaneWeights<Real> weights, int64_t length, Real* out) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (instruction_set == InstructionSet::kAvx512) {
      return run_avx512<BlendPlanes<Real, 64, kStream, kClamped, true>>(low, high, weights, length, out);
    }
    if (instruction_set == InstructionSet::kAvx2) {
      return run_avx2<BlendPlanes<Real, 32, kStream, kClamped, true>>(low, high, weights, length, out);
    }
#endif
    BlendPlanes<Real, 16, kStream, kClamped, false>::run(low, high, weights, length, out);
  }

  VolumeView<Voxel> volume_{};
  Matrix matrix_{};
  Intensity<Real> intensity_{};
  int64_t width_ = 0, first_ = 0, columns_ = 0, tile_ = -1;
  AxisTable<Real> taps_{0};
  RowInterpolator<Real> interpolator_;
  std::vector<Real> line_;
  std::array<std::vector<Real>, 2> planes_;
  std::array<int32_t, 2> held_ = {-1, -1};
};

}  // namespace fastmed
