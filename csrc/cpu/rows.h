// What the CPU resamplers share: parameters by output, and tables of taps along one axis.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "checks.h"
#include "cpu/simd.h"
#include "math/sampling.h"

namespace fastmed {

// A matrix whose off-diagonal entries move no sample by more than this many voxels counts as axis-aligned.
constexpr double kPositionTolerance = 1e-6;

// float64 parameters, one row per output or one for all; absent ones give null.
class ParameterRows {
 public:
  explicit ParameterRows(const std::optional<Tensor>& tensor) {
    if (!tensor) return;
    data_ = static_cast<const double*>(tensor->const_data_ptr());
    stride_ = tensor->size(0) == 1 ? 0 : tensor->stride(0);
  }

  bool present() const { return data_ != nullptr; }
  const double* row(int64_t output) const { return data_ ? data_ + output * stride_ : nullptr; }

 private:
  const double* data_ = nullptr;
  int64_t stride_ = 0;
};

template <class Voxel>
struct VolumeView {
  const Voxel* data;
  int64_t stride_z, stride_y;
  int32_t lengths[3];
};

inline Matrix read_matrix(const double* values) {
  Matrix matrix;
  std::copy(values, values + 12, &matrix.rows[0][0]);
  return matrix;
}

inline bool is_axis_aligned(const Matrix& matrix, const int64_t* size, double tolerance) {
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      const double reach = std::abs(matrix.rows[row][column]) * static_cast<double>(size[column]);
      if (row != column && !(reach <= tolerance)) return false;
    }
  }
  return true;
}

// True where every row of output runs along a row of the volume, all from the same column: straight grids, and those
// that a tilted gantry shears.
inline bool keeps_rows(const Matrix& matrix, const int64_t* size, double tolerance) {
  const auto moves = [&](int row, int column) {
    return !(std::abs(matrix.rows[row][column]) * static_cast<double>(size[column]) <= tolerance);
  };
  return !moves(0, 2) && !moves(1, 2) && !moves(2, 0) && !moves(2, 1);
}

template <class Real>
struct AxisTaps {
  const int32_t *low, *high;
  const Real *weight_low, *weight_high;
};

// The taps of every output index along one axis, as structure of arrays.
template <class Real>
struct AxisTable {
  std::vector<int32_t> low, high;
  std::vector<Real> weight_low, weight_high, coverage;

  explicit AxisTable(int64_t length)
      : low(length), high(length), weight_low(length), weight_high(length), coverage(length) {}

  void set(int64_t index, const Tap<Real>& tap) {
    low[index] = tap.low;
    high[index] = tap.high;
    weight_low[index] = tap.weight_low;
    weight_high[index] = tap.weight_high;
    coverage[index] = tap.coverage;
  }

  // First and last voxel that any tap reads.
  std::pair<int32_t, int32_t> range() const {
    return {*std::min_element(low.begin(), low.end()), *std::max_element(high.begin(), high.end())};
  }

  void move(int32_t offset) {
    for (int32_t& index : low) index += offset;
    for (int32_t& index : high) index += offset;
  }

  AxisTaps<Real> pointers() const { return {low.data(), high.data(), weight_low.data(), weight_high.data()}; }
};

// Up to four voxel rows (z and y neighbours) become one.
template <class Voxel, class Real, int kRows, bool kFused>
struct BlendRows {
  FASTMED_HD static void run(const Voxel* const* rows, const Real* weights, int64_t length, Real* __restrict line) {
    const Voxel* __restrict row0 = rows[0];
    const Voxel* __restrict row1 = rows[kRows > 1 ? 1 : 0];
    const Voxel* __restrict row2 = rows[kRows > 2 ? 2 : 0];
    const Voxel* __restrict row3 = rows[kRows > 3 ? 3 : 0];
    const Real w0 = weights[0], w1 = weights[kRows > 1 ? 1 : 0];
    const Real w2 = weights[kRows > 2 ? 2 : 0], w3 = weights[kRows > 3 ? 3 : 0];
    for (int64_t x = 0; x < length; ++x) {
      Real sum = w0 * static_cast<Real>(row0[x]);
      if constexpr (kRows > 1) sum = multiply_add<kFused>(w1, static_cast<Real>(row1[x]), sum);
      if constexpr (kRows > 2) sum = multiply_add<kFused>(w2, static_cast<Real>(row2[x]), sum);
      if constexpr (kRows > 3) sum = multiply_add<kFused>(w3, static_cast<Real>(row3[x]), sum);
      line[x] = sum;
    }
  }
};

template <int kRows, class Voxel, class Real>
void blend(const Voxel* const* rows, const Real* weights, int64_t length, Real* line) {
  run_fused<BlendRows<Voxel, Real, kRows, true>, BlendRows<Voxel, Real, kRows, false>>(rows, weights, length, line);
}

template <class Voxel, class Real>
void blend_rows(const Voxel* const* rows, const Real* weights, int count, int64_t length, Real* line) {
  switch (count) {
    case 1: return blend<1>(rows, weights, length, line);
    case 2: return blend<2>(rows, weights, length, line);
    default: return blend<4>(rows, weights, length, line);
  }
}

// The rows around (z, y) that weigh anything, and how many they are: 0, 1, 2 or 4.
template <class Voxel, class Real>
int neighbouring_rows(const Voxel* volume, int64_t stride_z, int64_t stride_y, const Tap<Real>& tap_z,
                      const Tap<Real>& tap_y, const Voxel** rows, Real* weights) {
  int count = 0;
  for (const auto& [z, weight_z] : {std::pair(tap_z.low, tap_z.weight_low), std::pair(tap_z.high, tap_z.weight_high)}) {
    for (const auto& [y, weight_y] : {std::pair(tap_y.low, tap_y.weight_low), std::pair(tap_y.high, tap_y.weight_high)}) {
      if (weight_z == Real(0) || weight_y == Real(0)) continue;
      rows[count] = volume + z * stride_z + y * stride_y;
      weights[count++] = weight_z * weight_y;
    }
  }
  return count;
}

}  // namespace fastmed
