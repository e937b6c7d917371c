// Samples of a row of output under any matrix: neighbours are found, fetched and blended a block at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"
#include "math/sampling.h"

namespace fastmed {

constexpr int kSampleBlock = 128;
constexpr int kSamplePrefetch = 24;

// Positions along a row of output in all three axes: start + step * x.
struct Line {
  double start[3], step[3];
};

// Any matrix. Neighbours along x are fetched two by two into blocks, everything else runs on vectors.
template <class Voxel, class Real, bool kFill>
struct SampleLinear {
  struct Pair {
    Voxel low, high;
  };

  FASTMED_HD static void run(VolumeView<Voxel> volume, Line line, int64_t length, Real* __restrict sampled,
                             Real* __restrict uncovered) {
    alignas(64) int32_t base[3][kSampleBlock];
    alignas(64) Real weight_low[3][kSampleBlock], weight_high[3][kSampleBlock];
    alignas(64) int64_t offset[kSampleBlock];
    alignas(64) Pair pairs[4][kSampleBlock];
    for (int64_t first = 0; first < length; first += kSampleBlock) {
      const int count = static_cast<int>(length - first < kSampleBlock ? length - first : kSampleBlock);
      for (int axis = 0; axis < 3; ++axis) {
        const double start = line.start[axis], step = line.step[axis];
        const int32_t axis_length = volume.lengths[axis];
        for (int x = 0; x < count; ++x) {
          const double position = start + step * static_cast<double>(static_cast<int32_t>(first) + x);
          const PairTap<Real> tap = pair_tap<Real, kFill>(position, axis_length);
          base[axis][x] = tap.base;
          weight_low[axis][x] = tap.weight_low;
          weight_high[axis][x] = tap.weight_high;
        }
      }
      for (int x = 0; x < count; ++x) {
        offset[x] = base[0][x] * volume.stride_z + base[1][x] * volume.stride_y + base[2][x];
      }
      fetch(volume, offset, count, pairs);
      for (int x = 0; x < count; ++x) {
        Real rows[4];
        for (int row = 0; row < 4; ++row) {
          rows[row] = blend(weight_low[2][x], pairs[row][x].low, weight_high[2][x], pairs[row][x].high);
        }
        const Real near = blend(weight_low[1][x], rows[0], weight_high[1][x], rows[1]);
        const Real far = blend(weight_low[1][x], rows[2], weight_high[1][x], rows[3]);
        sampled[first + x] = blend(weight_low[0][x], near, weight_high[0][x], far);
        if constexpr (kFill) {
          uncovered[first + x] = Real(1) - (weight_low[0][x] + weight_high[0][x]) *
                                               (weight_low[1][x] + weight_high[1][x]) *
                                               (weight_low[2][x] + weight_high[2][x]);
        }
      }
    }
  }

 private:
  FASTMED_HD static void fetch(VolumeView<Voxel> volume, const int64_t* offset, int count, Pair (*pairs)[kSampleBlock]) {
    const int64_t step_z = volume.lengths[0] > 1 ? volume.stride_z : 0;
    const int64_t step_y = volume.lengths[1] > 1 ? volume.stride_y : 0;
    const int64_t steps[4] = {0, step_y, step_z, step_z + step_y};
    if (volume.lengths[2] == 1) {  // there is no second voxel to read
      for (int x = 0; x < count; ++x) {
        for (int row = 0; row < 4; ++row) {
          const Voxel voxel = volume.data[offset[x] + steps[row]];
          pairs[row][x] = {voxel, voxel};
        }
      }
      return;
    }
    for (int x = 0; x < count; ++x) {
      const Voxel* const near = volume.data + offset[x];
      const Voxel* const ahead = volume.data + offset[x + kSamplePrefetch < count ? x + kSamplePrefetch : x];
      for (int row = 0; row < 4; ++row) {
        __builtin_prefetch(ahead + steps[row]);
        std::memcpy(&pairs[row][x], near + steps[row], sizeof(Pair));
      }
    }
  }

  template <class Value>
  FASTMED_HD static Real blend(Real weight_low, Value low, Real weight_high, Value high) {
    const Real near = static_cast<Real>(low), far = static_cast<Real>(high);
    if constexpr (std::is_integral_v<Voxel>) {
      return weight_low * near + weight_high * far;
    } else {
      return weighted(weight_low, near) + weighted(weight_high, far);
    }
  }
};

template <class Voxel, class Real, bool kFill>
struct SampleNearest {
  FASTMED_HD static void run(VolumeView<Voxel> volume, Line line, int64_t length, Real* __restrict sampled,
                             Real* __restrict uncovered) {
    alignas(64) int32_t index[3][kSampleBlock];
    alignas(64) int32_t inside[kSampleBlock];
    for (int64_t first = 0; first < length; first += kSampleBlock) {
      const int count = static_cast<int>(length - first < kSampleBlock ? length - first : kSampleBlock);
      for (int x = 0; x < count; ++x) inside[x] = 1;
      for (int axis = 0; axis < 3; ++axis) {
        const double start = line.start[axis], step = line.step[axis];
        const int32_t axis_length = volume.lengths[axis];
        for (int x = 0; x < count; ++x) {
          const double position = start + step * static_cast<double>(static_cast<int32_t>(first) + x);
          const int32_t nearest = nearest_index(position, axis_length);
          index[axis][x] = clamp_index(nearest, axis_length);
          inside[x] &= nearest == index[axis][x] ? 1 : 0;
        }
      }
      for (int x = 0; x < count; ++x) {
        const int64_t offset = index[0][x] * volume.stride_z + index[1][x] * volume.stride_y + index[2][x];
        const Real voxel = static_cast<Real>(volume.data[offset]);
        sampled[first + x] = !kFill || inside[x] ? voxel : Real(0);
        if constexpr (kFill) uncovered[first + x] = inside[x] ? Real(0) : Real(1);
      }
    }
  }
};

}  // namespace fastmed
