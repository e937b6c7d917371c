// Where an output voxel samples its volume, with which weights, and what becomes of the sampled value.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "math/host_device.h"

namespace fastmed {

// Maps an output index (z, y, x, 1) to an input index; rows give the input's z, y and x.
struct Matrix {
  double rows[3][4];
};

// Input index, along one axis, of output voxel (z, y, 0). Adding rows[axis][2] * x gives that of (z, y, x).
FASTMED_HD double row_start(const Matrix& matrix, int axis, double z, double y) {
  const double* row = matrix.rows[axis];
  return row[0] * z + row[1] * y + row[3];
}

// NaN gives low, so that no index ever leaves the volume.
FASTMED_HD double clamp_position(double position, double low, double high) {
  const double above = position > low ? position : low;
  return above < high ? above : high;
}

// Position must fit 32 bits.
FASTMED_HD int32_t floor_to_int(double position) {
  const int32_t truncated = static_cast<int32_t>(position);
  return truncated - (position < truncated ? 1 : 0);
}

FASTMED_HD int32_t clamp_index(int32_t index, int32_t length) {
  const int32_t above = index > 0 ? index : 0;
  return above < length ? above : length - 1;
}

// The two neighbours of a position along one axis, and the share of the weight that lies inside the volume.
template <class Real>
struct Tap {
  int32_t low, high;
  Real weight_low, weight_high, coverage;
};

// The lower of the two voxels that edge_tap reads.
FASTMED_HD int32_t edge_index(double position, int32_t length) {
  return static_cast<int32_t>(clamp_position(position, 0.0, length - 1.0));
}

// A position outside takes the value of the edge.
template <class Real>
FASTMED_HD Tap<Real> edge_tap(double position, int32_t length) {
  const double inside = clamp_position(position, 0.0, length - 1.0);
  const int32_t low = static_cast<int32_t>(inside);
  const double fraction = inside - low;
  const int32_t high = low + 1 < length ? low + 1 : low;
  return {low, high, static_cast<Real>(1.0 - fraction), static_cast<Real>(fraction), Real(1)};
}

// Neighbours outside the volume weigh nothing; what the coverage lacks to one belongs to the fill value.
template <class Real>
FASTMED_HD Tap<Real> fill_tap(double position, int32_t length) {
  const double near = clamp_position(position, -1.0, length);
  const int32_t low = floor_to_int(near);
  const double fraction = near - low;
  const double weight_low = low >= 0 && low < length ? 1.0 - fraction : 0.0;
  const double weight_high = low + 1 < length ? fraction : 0.0;
  return {clamp_index(low, length), clamp_index(low + 1, length), static_cast<Real>(weight_low),
          static_cast<Real>(weight_high), static_cast<Real>(weight_low + weight_high)};
}

// As Tap, where the two neighbours are always consecutive voxels: base and base + 1 (for one voxel alone, base).
template <class Real>
struct PairTap {
  int32_t base;
  Real weight_low, weight_high;
};

template <class Real, bool kFill>
FASTMED_HD PairTap<Real> pair_tap(double position, int32_t length) {
  const double near = kFill ? clamp_position(position, -1.0, length) : clamp_position(position, 0.0, length - 1.0);
  const double last_base = length > 1 ? length - 2.0 : 0.0;
  const int32_t base = static_cast<int32_t>(clamp_position(near, 0.0, last_base));
  const Real offset = static_cast<Real>(near - base);
  const Real low = Real(1) - std::abs(offset), high = Real(1) - std::abs(offset - Real(1));
  const Real weight_high = high > Real(0) ? high : Real(0);
  return {base, low > Real(0) ? low : Real(0), length > 1 ? weight_high : Real(0)};
}

// A voxel that weighs nothing contributes nothing, NaN and infinity included.
template <class Real>
FASTMED_HD Real weighted(Real weight, Real value) {
  return weight == Real(0) ? Real(0) : weight * value;
}

// Calls visit(z, y, x, weight) for the eight voxels around a position; taps along z, y, x.
template <class Real, class Visit>
FASTMED_HD void visit_corners(const Tap<Real>* taps, const Visit& visit) {
  const Tap<Real>&z = taps[0], &y = taps[1], &x = taps[2];
  for (int corner = 0; corner < 8; ++corner) {
    const bool high_z = corner & 4, high_y = corner & 2, high_x = corner & 1;
    visit(high_z ? z.high : z.low, high_y ? y.high : y.low, high_x ? x.high : x.low,
          (high_z ? z.weight_high : z.weight_low) * (high_y ? y.weight_high : y.weight_low) *
              (high_x ? x.weight_high : x.weight_low));
  }
}

// Trilinear interpolation in a volume whose rows are contiguous.
template <class Real, class Voxel>
FASTMED_HD Real interpolate_corners(const Voxel* volume, int64_t stride_z, int64_t stride_y, const Tap<Real>* taps) {
  Real sum = 0;
  visit_corners(taps, [&](int32_t z, int32_t y, int32_t x, Real weight) {
    sum += weighted(weight, static_cast<Real>(volume[z * stride_z + y * stride_y + x]));
  });
  return sum;
}

// floor(position + 0.5), or -1 or length where that lies outside.
FASTMED_HD int32_t nearest_index(double position, int32_t length) {
  return floor_to_int(clamp_position(position + 0.5, -1.0, length));
}

// The tap of a position in either mode; without fill a position outside takes the value of the edge.
template <class Real>
FASTMED_HD Tap<Real> tap_at(double position, int32_t length, bool nearest, bool fill) {
  if (!nearest) return fill ? fill_tap<Real>(position, length) : edge_tap<Real>(position, length);
  const int32_t index = nearest_index(position, length), inside = clamp_index(index, length);
  const Real weight = index == inside || !fill ? Real(1) : Real(0);
  return {inside, inside, weight, Real(0), weight};
}

// True more than half a voxel beyond the first or last voxel centre.
FASTMED_HD bool is_outside(double position, int32_t length) {
  return !(position >= -0.5 && position <= length - 0.5);
}

// Rescale and window folded into one multiply-add: interpolation is linear, so it may come first.
template <class Real>
struct Intensity {
  Real gain, bias, fill;  // fill: what a voxel wholly outside adds to bias
  bool clamped;
};

template <class Real>
FASTMED_HD Intensity<Real> make_intensity(double scale, double shift, const double* window, const double* fill) {
  const double low = window ? window[0] : 0.0;
  const double width = window ? window[1] - window[0] : 1.0;
  return {static_cast<Real>(scale / width), static_cast<Real>((shift - low) / width),
          static_cast<Real>(fill ? (*fill - shift) / width : 0.0), window != nullptr};
}

// Comparisons are written so that NaN passes through.
template <class Real>
FASTMED_HD Real clamp_unit(Real value) {
  const Real above = value < Real(0) ? Real(0) : value;
  return above > Real(1) ? Real(1) : above;
}

// sampled is the weighted sum over the voxels inside, uncovered the weight of those outside.
template <class Real>
FASTMED_HD Real apply(const Intensity<Real>& intensity, Real sampled, Real uncovered) {
  const Real value = intensity.gain * sampled + intensity.bias + intensity.fill * uncovered;
  return intensity.clamped ? clamp_unit(value) : value;
}

// A value in the output's dtype: integers round half to even and saturate, half precisions come by way of float32.
template <class Out, class Real>
FASTMED_HD Out convert(Real value) {
  if constexpr (std::is_integral_v<Out>) {
    constexpr Real lowest = std::numeric_limits<Out>::lowest(), highest = std::numeric_limits<Out>::max();
    const Real rounded = std::rint(value);
    const Real above = rounded > lowest ? rounded : lowest;
    return static_cast<Out>(above < highest ? above : highest);
  } else if constexpr (std::is_floating_point_v<Out>) {
    return static_cast<Out>(value);
  } else {
    return static_cast<Out>(static_cast<float>(value));
  }
}

}  // namespace fastmed
