// Samples of a row of output under any matrix.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd.h"
#include "math/sampling.h"

namespace fastmed {

constexpr int kSampleBlock = 128;
constexpr int kGroup = 32;
constexpr int kFetchAfter = 2, kBlendAfter = 3;  // groups located meanwhile

// Positions along a row of output in all three axes: start + step * x.
struct Line {
  double start[3], step[3];
};

// Any matrix, a group of samples at a time. The work on several groups is interleaved, so that memory has answered when
// its answer is needed, and stores have left the way of the loads that follow them. Neighbours along x are fetched two
// by two, everything else runs on vectors.
template <class Voxel, class Real, bool kFill>
struct SampleLinear {
  FASTMED_HD static void run(VolumeView<Voxel> volume, Line line, int64_t length, Real* __restrict sampled,
                             Real* __restrict uncovered) {
    Group ring[kBlendAfter + 1];
    const auto group = [&](int64_t number) -> Group& { return ring[number % (kBlendAfter + 1)]; };
    const Corners corners(volume);
    const int64_t count = (length + kGroup - 1) / kGroup;
    for (int64_t turn = 0; turn < count + kBlendAfter; ++turn) {
      if (turn < count) {
        locate(volume, line, static_cast<double>(turn * kGroup), group(turn));
        ask(volume.data, corners, group(turn));
      }
      const int64_t fetched = turn - kFetchAfter, blended = turn - kBlendAfter;
      if (fetched >= 0 && fetched < count) fetch(volume.data, corners, group(fetched));
      if (blended < 0) continue;
      const int64_t first = blended * kGroup;
      finish(group(blended), length - first, sampled + first, uncovered + first);
    }
  }

 private:
  struct Pair {
    Voxel low, high;
  };

  struct Group {
    alignas(64) int64_t offset[kGroup];
    alignas(64) Real weight_low[3][kGroup], weight_high[3][kGroup];
    alignas(64) Pair pairs[4][kGroup];
  };

  // From a sample's first neighbour to the first of each pair; an axis of one voxel has no second.
  struct Corners {
    int64_t steps[4];
    bool has_pairs;

    FASTMED_HD explicit Corners(const VolumeView<Voxel>& volume) : has_pairs(volume.lengths[2] > 1) {
      const int64_t step_z = volume.lengths[0] > 1 ? volume.stride_z : 0;
      const int64_t step_y = volume.lengths[1] > 1 ? volume.stride_y : 0;
      for (int row = 0; row < 4; ++row) steps[row] = row / 2 * step_z + row % 2 * step_y;
    }
  };

  // A whole group, also where the line ends within it: what lies beyond has neighbours in the volume, too.
  FASTMED_HD static void locate(const VolumeView<Voxel>& volume, const Line& line, double first, Group& group) {
    alignas(64) int32_t base[3][kGroup];
    for (int axis = 0; axis < 3; ++axis) {
      const double start = line.start[axis], step = line.step[axis];
      const int32_t axis_length = volume.lengths[axis];
      for (int x = 0; x < kGroup; ++x) {
        const double position = start + step * (first + static_cast<double>(x));
        const PairTap<Real> tap = pair_tap<Real, kFill>(position, axis_length);
        base[axis][x] = tap.base;
        group.weight_low[axis][x] = tap.weight_low;
        group.weight_high[axis][x] = tap.weight_high;
      }
    }
    for (int x = 0; x < kGroup; ++x) {
      group.offset[x] = base[0][x] * volume.stride_z + base[1][x] * volume.stride_y + base[2][x];
    }
  }

  FASTMED_HD static void ask(const Voxel* data, const Corners& corners, const Group& group) {
    for (int x = 0; x < kGroup; ++x) {
      for (int row = 0; row < 4; ++row) __builtin_prefetch(data + group.offset[x] + corners.steps[row]);
    }
  }

  FASTMED_HD static void fetch(const Voxel* data, const Corners& corners, Group& group) {
    for (int x = 0; x < kGroup; ++x) {
      for (int row = 0; row < 4; ++row) {
        const Voxel* const low = data + group.offset[x] + corners.steps[row];
        if (corners.has_pairs) {
          std::memcpy(&group.pairs[row][x], low, sizeof(Pair));
        } else {
          group.pairs[row][x] = {*low, *low};
        }
      }
    }
  }

  FASTMED_HD static void finish(const Group& group, int64_t count, Real* __restrict sampled,
                                Real* __restrict uncovered) {
    if (count >= kGroup) return blend(group, sampled, uncovered);
    Real few_sampled[kGroup], few_uncovered[kGroup];
    blend(group, few_sampled, few_uncovered);
    for (int64_t x = 0; x < count; ++x) sampled[x] = few_sampled[x];
    if constexpr (kFill) {
      for (int64_t x = 0; x < count; ++x) uncovered[x] = few_uncovered[x];
    }
  }

  FASTMED_HD static void blend(const Group& group, Real* __restrict sampled, Real* __restrict uncovered) {
    const auto& low = group.weight_low;
    const auto& high = group.weight_high;
    for (int x = 0; x < kGroup; ++x) {
      Real rows[4];
      for (int row = 0; row < 4; ++row) {
        rows[row] = between(low[2][x], group.pairs[row][x].low, high[2][x], group.pairs[row][x].high);
      }
      const Real near = between(low[1][x], rows[0], high[1][x], rows[1]);
      const Real far = between(low[1][x], rows[2], high[1][x], rows[3]);
      sampled[x] = between(low[0][x], near, high[0][x], far);
      if constexpr (kFill) {
        uncovered[x] = Real(1) - (low[0][x] + high[0][x]) * (low[1][x] + high[1][x]) * (low[2][x] + high[2][x]);
      }
    }
  }

  template <class Value>
  FASTMED_HD static Real between(Real weight_low, Value low, Real weight_high, Value high) {
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
