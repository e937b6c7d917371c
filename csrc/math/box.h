// Boxes given by their corners: volume, overlap of a pair, and the overlap's derivative.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "math/host_device.h"

namespace fastmed {

template <class Real, int kAxes>
struct Box {
  Real low[kAxes], high[kAxes];
};

// From (x1, y1, x2, y2) or (x1, y1, z1, x2, y2, z2).
template <class Real, int kAxes>
FASTMED_HD Box<Real, kAxes> load_box(const Real* corners) {
  Box<Real, kAxes> box;
  for (int axis = 0; axis < kAxes; ++axis) {
    box.low[axis] = corners[axis];
    box.high[axis] = corners[kAxes + axis];
  }
  return box;
}

template <class Real>
FASTMED_HD Real smaller(Real a, Real b) {
  return b < a ? b : a;
}

template <class Real>
FASTMED_HD Real larger(Real a, Real b) {
  return a < b ? b : a;
}

// A length; NaN stays NaN, so that it reaches the union and with it every result.
template <class Real>
FASTMED_HD Real not_negative(Real length) {
  return length < Real(0) ? Real(0) : length;
}

// The same of a pair's length, where NaN may become 0: a box that makes it NaN has NaN for its own volume. The sign of
// a float is that of its bits as an integer, and CPUs take the larger of two integers beside the floats' own units.
template <class Real>
FASTMED_HD Real shared_length(Real length) {
#ifndef __CUDACC__
  if constexpr (sizeof(Real) == sizeof(int32_t)) {
    const int32_t bits = std::bit_cast<int32_t>(length);
    return std::bit_cast<Real>(bits < 0 ? 0 : bits);
  }
#endif
  return not_negative(length);
}

template <class Real, int kAxes>
FASTMED_HD bool is_finite(const Box<Real, kAxes>& box) {
  bool finite = true;
  for (int axis = 0; axis < kAxes; ++axis) {
    finite &= box.low[axis] - box.low[axis] == Real(0);
    finite &= box.high[axis] - box.high[axis] == Real(0);
  }
  return finite;
}

template <class Real, int kAxes>
FASTMED_HD bool is_infinite(const Box<Real, kAxes>& box) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  bool infinite = false;
  for (int axis = 0; axis < kAxes; ++axis) {
    infinite |= box.low[axis] == infinity || box.low[axis] == -infinity;
    infinite |= box.high[axis] == infinity || box.high[axis] == -infinity;
  }
  return infinite;
}

template <class Real, int kAxes>
FASTMED_HD Real volume(const Box<Real, kAxes>& box) {
  Real product = not_negative(box.high[0] - box.low[0]);
  for (int axis = 1; axis < kAxes; ++axis) product *= not_negative(box.high[axis] - box.low[axis]);
  return product;
}

template <class Real, int kAxes>
FASTMED_HD Real intersection(const Box<Real, kAxes>& a, const Box<Real, kAxes>& b) {
  Real product = Real(1);
  for (int axis = 0; axis < kAxes; ++axis) {
    product *= shared_length(smaller(a.high[axis], b.high[axis]) - larger(a.low[axis], b.low[axis]));
  }
  return product;
}

// Volume of the smallest box around both.
template <class Real, int kAxes>
FASTMED_HD Real hull_volume(const Box<Real, kAxes>& a, const Box<Real, kAxes>& b) {
  Real product = Real(1);
  for (int axis = 0; axis < kAxes; ++axis) {
    product *= shared_length(larger(a.high[axis], b.high[axis]) - smaller(a.low[axis], b.low[axis]));
  }
  return product;
}

template <class Real>
FASTMED_HD Real ratio_or_zero(Real part, Real whole) {
  return whole == Real(0) ? Real(0) : part / whole;
}

// IoU, or with kGeneralized GIoU, of boxes whose volumes are known.
template <bool kGeneralized, class Real, int kAxes>
FASTMED_HD Real box_overlap(const Box<Real, kAxes>& a, Real volume_a, const Box<Real, kAxes>& b, Real volume_b) {
  const Real shared = intersection(a, b);
  const Real joined = volume_a + volume_b - shared;
  const Real iou = ratio_or_zero(shared, joined);
  if constexpr (!kGeneralized) return iou;
  const Real hull = hull_volume(a, b);
  return iou - ratio_or_zero(hull - joined, hull);
}

// False only where the IoU cannot exceed the threshold: a quotient above it leaves, since rounding is monotonic,
// no room for threshold * union above the intersection.
template <class Real, int kAxes>
FASTMED_HD bool may_suppress(const Box<Real, kAxes>& a, Real volume_a, const Box<Real, kAxes>& b, Real volume_b,
                             Real threshold) {
  const Real shared = intersection(a, b);
  const Real joined = volume_a + volume_b - shared;
  const Real least = threshold < Real(0) ? Real(-1) : Real(0);
  return (shared > least) & (shared >= threshold * joined);
}

template <class Real, int kAxes>
FASTMED_HD bool suppresses(const Box<Real, kAxes>& a, Real volume_a, const Box<Real, kAxes>& b, Real volume_b,
                           Real threshold) {
  return may_suppress(a, volume_a, b, volume_b, threshold) &&
         box_overlap<false>(a, volume_a, b, volume_b) > threshold;
}

// The threshold in the arithmetic of the IoU; one beyond its range divides the IoUs just as the range's end does.
template <class Real>
FASTMED_HD Real comparable_threshold(double threshold) {
  const double end = static_cast<double>(std::numeric_limits<Real>::max());
  return static_cast<Real>(larger(-end, smaller(threshold, end)));
}

template <class Real>
FASTMED_HD Real one_if(bool condition) {
  return condition ? Real(1) : Real(0);
}

// The part of a smaller(own, other) that moves with its first argument; equal ones share.
template <class Real>
FASTMED_HD Real share_of_smaller(Real own, Real other) {
  return Real(0.5) * (one_if<Real>(own < other) + one_if<Real>(own <= other));
}

// Derivative of a product of lengths by one of them; a length clamped at 0 has none.
template <class Real, int kAxes>
FASTMED_HD Real product_derivative(const Real (&lengths)[kAxes], int axis) {
  Real product = one_if<Real>(lengths[axis] > Real(0));
  for (int other = 0; other < kAxes; ++other) {
    if (other != axis) product *= not_negative(lengths[other]);
  }
  return product;
}

template <class Real, int kAxes>
FASTMED_HD Real product_of(const Real (&lengths)[kAxes]) {
  Real product = not_negative(lengths[0]);
  for (int axis = 1; axis < kAxes; ++axis) product *= not_negative(lengths[axis]);
  return product;
}

// 1 / whole, and 0 where that is no finite number.
template <class Real>
FASTMED_HD Real inverse_or_zero(Real whole) {
  return whole < std::numeric_limits<Real>::min() ? Real(0) : Real(1) / whole;
}

// weight times the derivative of box_overlap by the corners of `own`. At kinks: half of each side where two corners
// coincide, 0 where a length or the union is 0.
template <bool kGeneralized, class Real, int kAxes>
FASTMED_HD Box<Real, kAxes> overlap_derivative(const Box<Real, kAxes>& own, const Box<Real, kAxes>& other,
                                               Real weight) {
  Real sides[kAxes], shared_sides[kAxes], hull_sides[kAxes];
  for (int axis = 0; axis < kAxes; ++axis) {
    sides[axis] = own.high[axis] - own.low[axis];
    shared_sides[axis] = smaller(own.high[axis], other.high[axis]) - larger(own.low[axis], other.low[axis]);
    hull_sides[axis] = larger(own.high[axis], other.high[axis]) - smaller(own.low[axis], other.low[axis]);
  }
  const Real shared = product_of(shared_sides);
  const Real joined = product_of(sides) + volume(other) - shared;
  const Real inverse = inverse_or_zero(joined);
  Real by_union = -weight * (shared * inverse) * inverse;
  Real by_hull = Real(0);
  if constexpr (kGeneralized) {
    const Real hull_inverse = inverse_or_zero(product_of(hull_sides));
    by_union += weight * hull_inverse;
    by_hull = -weight * (joined * hull_inverse) * hull_inverse;
  }
  const Real by_shared = weight * inverse - by_union;

  Box<Real, kAxes> derivative;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Real by_side = by_union * product_derivative(sides, axis);
    const Real by_shared_side = by_shared * product_derivative(shared_sides, axis);
    const Real low_is_larger = share_of_smaller(other.low[axis], own.low[axis]);
    const Real high_is_smaller = share_of_smaller(own.high[axis], other.high[axis]);
    derivative.low[axis] = -by_side - by_shared_side * low_is_larger;
    derivative.high[axis] = by_side + by_shared_side * high_is_smaller;
    if constexpr (kGeneralized) {
      const Real by_hull_side = by_hull * product_derivative(hull_sides, axis);
      derivative.low[axis] -= by_hull_side * (Real(1) - low_is_larger);
      derivative.high[axis] += by_hull_side * (Real(1) - high_is_smaller);
    }
  }
  return derivative;
}

}  // namespace fastmed
