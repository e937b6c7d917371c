// exp without a library call, and what one voxel's softmax adds to the overlap of a class.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "math/host_device.h"

namespace fastmed {

// e^x = 2^n e^r with n = rint(x / ln 2) and |r| <= ln 2 / 2; ln 2 in two parts, so that n * kLn2High is exact.
// Adding kRounder rounds to an integer and leaves it in the lowest bits of the sum.
template <class Real>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Bits kOne = 0x3f800000u;
  static constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kPerLn2 = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -87.3365402f;  // e^x stays a normal number
};

template <>
struct ExpConstants<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Bits kOne = 0x3ff0000000000000ull;
  static constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kPerLn2 = 1.4426950408889634;
  static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kLowest = -708.39641853226408;
};

// (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2: minimax with a relative error of 4e-9 in e^r.
FASTMED_HD float exp_series(float r) {
  float sum = 1.381454058e-3f;
  sum = sum * r + 8.368745446e-3f;
  sum = sum * r + 4.166838899e-2f;
  sum = sum * r + 1.666652113e-1f;
  return sum * r + 4.999999404e-1f;
}

// The Taylor series, with a relative error of 4e-18 in e^r.
FASTMED_HD double exp_series(double r) {
  double sum = 1.0 / 6227020800.0;
  sum = sum * r + 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  return sum * r + 0.5;
}

// e^x for x <= 0, within 2 units in the last place; 0 where e^x would be subnormal, NaN for NaN.
template <class Real>
FASTMED_HD Real exp_nonpositive(Real x) {
  using Constants = ExpConstants<Real>;
  const Real inside = x < Constants::kLowest ? Constants::kLowest : x;
  const Real rounded = inside * Constants::kPerLn2 + Constants::kRounder;
  const Real n = rounded - Constants::kRounder;
  const Real r = (inside - n * Constants::kLn2High) - n * Constants::kLn2Low;
  typename Constants::Bits bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  bits = (bits << Constants::kMantissaBits) + Constants::kOne;
  Real power;
  std::memcpy(&power, &bits, sizeof(power));
  const Real value = (Real(1) + (r + r * r * exp_series(r))) * power;
  return x < Constants::kLowest ? Real(0) : value;
}

template <class Real>
FASTMED_HD Real sigmoid_of(Real x) {
  const Real exponential = exp_nonpositive(x < 0 ? x : -x);
  const Real share = Real(1) / (Real(1) + exponential);
  return x < 0 ? exponential * share : share;
}

// The larger of two; a NaN logit may lose here, for it turns the voxel's sum of exponentials into NaN all the same.
template <class Real>
FASTMED_HD Real larger_logit(Real value, Real other) {
  return other > value ? other : value;
}

// Channels that stand for a voxel's target label.
constexpr int32_t kNoClass = -1;  // the target counts for no class, the voxel for its prediction
constexpr int32_t kIgnored = -2;  // the voxel counts nowhere

// A single channel is the foreground, whose label is 1.
FASTMED_HD int32_t target_channel(int64_t label, int64_t classes, bool has_ignore, int64_t ignore_index) {
  if (has_ignore && label == ignore_index) return kIgnored;
  if (classes == 1) return label == 1 ? 0 : kNoClass;
  return label >= 0 && label < classes ? static_cast<int32_t>(label) : kNoClass;
}

// What raising a class's probability by one adds to the loss.
template <class Real>
FASTMED_HD Real class_gain(Real grad_intersection, Real grad_prediction, bool is_target) {
  return is_target ? grad_intersection + grad_prediction : grad_prediction;
}

// The gradient of one logit; expected_gain is the sum of probability * class_gain over the voxel's classes.
template <class Real>
FASTMED_HD Real logit_gradient(Real exponential, Real scale, Real gain, Real expected_gain, int32_t channel) {
  return channel == kIgnored ? Real(0) : exponential * scale * (gain - expected_gain);
}

}  // namespace fastmed
