// Which classes may win inside a cell (eight neighbouring voxels), and which one wins at a point.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "math/host_device.h"

namespace fastmed {

// Arithmetic of the interpolation: the logits' own where that is float64, else float32.
template <class Logit>
using RealOf = std::conditional_t<std::is_same_v<Logit, double>, double, float>;

// Stands in a map of cells for one whose corners have different labels; no label is so high.
template <class Label>
constexpr Label kMixed = std::is_same_v<Label, uint8_t> ? 255 : -1;

// The lowest class of the highest value; a single class stands for sigmoid(value) > 0.5.
template <class ValueOf>
FASTMED_HD int64_t argmax_of(int64_t classes, const ValueOf& value_of) {
  auto best = value_of(0);
  if (classes == 1) return best > 0 ? 1 : 0;
  int64_t label = 0;
  for (int64_t channel = 1; channel < classes; ++channel) {
    const auto value = value_of(channel);
    label = value > best ? channel : label;
    best = value > best ? value : best;
  }
  return label;
}

// A class whose value lies below this at all eight corners wins nowhere in the cell: trilinear weights are not
// negative, so the mean of any two others lies above it everywhere, and the higher of the two above their mean.
// The margin exceeds what rounding adds to an interpolated value, so that leaving the class out changes no bit.
template <class Real>
FASTMED_HD Real contender_bound(Real rival, Real other) {
  constexpr Real kMargin = std::is_same_v<Real, double> ? Real(4e-15) : Real(2e-6);
  return Real(0.5) * rival + Real(0.5) * other - kMargin * (std::abs(rival) + std::abs(other));
}

}  // namespace fastmed
