// Gradient of window_resample on the CPU: every thread owns planes of the volume and adds to them in the output's order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/results.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

// The arguments of one call, unpacked.
struct Request {
  const void *grad, *result;  // result is null where nothing was clamped
  ParameterRows matrix, scale, window;
  int64_t outputs, size[3];
  int32_t lengths[3];  // of the volume
  bool fill, nearest;

  int64_t stride(int axis) const { return axis == 1 ? lengths[2] : static_cast<int64_t>(lengths[1]) * lengths[2]; }
};

// Gradient of a row of samples: that of the output times the gain, nothing where the window clamped.
template <class Grad, class Real>
struct SampleGradient {
  FASTMED_HD static void run(const Grad* __restrict grad, const Grad* __restrict result, Real gain, int64_t length,
                             Real* __restrict sampled) {
    if (result) {
      for (int64_t x = 0; x < length; ++x) {
        const Real value = static_cast<Real>(result[x]);
        const bool inside = value > Real(0) && value < Real(1);
        sampled[x] = inside ? gain * static_cast<Real>(grad[x]) : Real(0);
      }
    } else {
      for (int64_t x = 0; x < length; ++x) sampled[x] = gain * static_cast<Real>(grad[x]);
    }
  }
};

template <class Real>
using ReadRow = void (*)(const Request& request, int64_t row, Real gain, Real* sampled);

template <class Grad, class Real>
void read_row(const Request& request, int64_t row, Real gain, Real* sampled) {
  const int64_t first = row * request.size[2];
  const Grad* const result = request.result ? static_cast<const Grad*>(request.result) + first : nullptr;
  run<SampleGradient<Grad, Real>>(static_cast<const Grad*>(request.grad) + first, result, gain, request.size[2],
                                  sampled);
}

template <class Real>
struct AddScaled {
  FASTMED_HD static void run(Real weight, const Real* __restrict line, int64_t length, Real* __restrict row) {
    for (int64_t x = 0; x < length; ++x) row[x] += weight * line[x];
  }
};

// Adds the rows of every output to the planes [begin, end) of the volume along the owned axis.
template <class Real>
class Scatter {
 public:
  Scatter(const Request& request, ReadRow<Real> read, int axis, int64_t begin, int64_t end, Real* volume)
      : request_(request), read_(read), axis_(axis), begin_(static_cast<int32_t>(begin)),
        end_(static_cast<int32_t>(end)), volume_(volume), width_(request.size[2]), sampled_(width_), taps_(width_) {}

  void run_all() {
    for (int64_t output = 0; output < request_.outputs; ++output) {
      start(output);
      for (int64_t z = 0; z < request_.size[0]; ++z) {
        for (int64_t y = 0; y < request_.size[1]; ++y) add_row((output * request_.size[0] + z) * request_.size[1] + y, z, y);
      }
    }
  }

 private:
  void start(int64_t output) {
    matrix_ = read_matrix(request_.matrix.row(output));
    const double* const window = request_.window.row(output);
    gain_ = make_intensity<Real>(*request_.scale.row(output), 0.0, window, nullptr).gain;
    straight_ = keeps_rows(matrix_, request_.size, request_.nearest ? 0.0 : kPositionTolerance);
    if (!straight_) return;
    for (int64_t x = 0; x < width_; ++x) {
      taps_.set(x, tap(matrix_.rows[2][3] + matrix_.rows[2][2] * static_cast<double>(x), request_.lengths[2]));
    }
    const auto [first, last] = taps_.range();
    taps_.move(-first);
    first_ = first;
    line_.resize(last - first + 1);
  }

  Tap<Real> tap(double position, int32_t length) const {
    return tap_at<Real>(position, length, request_.nearest, request_.fill);
  }

  bool owns(int32_t index) const { return index >= begin_ && index < end_; }

  // False where no sample of the row lies between planes of this thread.
  bool may_touch(double first, double last) const {
    const int32_t length = request_.lengths[axis_];
    const Tap<Real> one = tap(first, length), other = tap(last, length);
    return std::min(one.low, other.low) < end_ && std::max(one.high, other.high) >= begin_;
  }

  void add_row(int64_t row, int64_t z, int64_t y) {
    double start[3];
    for (int axis = 0; axis < 3; ++axis) {
      start[axis] = row_start(matrix_, axis, static_cast<double>(z), static_cast<double>(y));
    }
    const double run_length = matrix_.rows[axis_][2] * static_cast<double>(width_ - 1);
    if (!may_touch(start[axis_], start[axis_] + run_length)) return;
    read_(request_, row, gain_, sampled_.data());
    straight_ ? add_straight(start) : add_any(start);
  }

  void add_straight(const double* start) {
    std::fill(line_.begin(), line_.end(), Real(0));
    for (int64_t x = 0; x < width_; ++x) {
      line_[taps_.low[x]] += weighted(taps_.weight_low[x], sampled_[x]);
      line_[taps_.high[x]] += weighted(taps_.weight_high[x], sampled_[x]);
    }
    const Tap<Real> tap_z = tap(start[0], request_.lengths[0]), tap_y = tap(start[1], request_.lengths[1]);
    const auto add = [&](int32_t z, Real weight_z, int32_t y, Real weight_y) {
      if (weight_z == Real(0) || weight_y == Real(0) || !owns(axis_ == 0 ? z : y)) return;
      run<AddScaled<Real>>(weight_z * weight_y, line_.data(), static_cast<int64_t>(line_.size()),
                           volume_ + z * request_.stride(0) + y * request_.stride(1) + first_);
    };
    add(tap_z.low, tap_z.weight_low, tap_y.low, tap_y.weight_low);
    add(tap_z.low, tap_z.weight_low, tap_y.high, tap_y.weight_high);
    add(tap_z.high, tap_z.weight_high, tap_y.low, tap_y.weight_low);
    add(tap_z.high, tap_z.weight_high, tap_y.high, tap_y.weight_high);
  }

  void add_any(const double* start) {
    for (int64_t x = 0; x < width_; ++x) {
      if (sampled_[x] == Real(0)) continue;
      Tap<Real> taps[3];
      for (int axis = 0; axis < 3; ++axis) {
        taps[axis] = tap(start[axis] + matrix_.rows[axis][2] * static_cast<double>(x), request_.lengths[axis]);
      }
      visit_corners(taps, [&](int32_t z, int32_t y, int32_t column, Real weight) {
        if (weight == Real(0) || !owns(axis_ == 0 ? z : y)) return;
        volume_[z * request_.stride(0) + y * request_.stride(1) + column] += weight * sampled_[x];
      });
    }
  }

  const Request& request_;
  const ReadRow<Real> read_;
  const int axis_;
  const int32_t begin_, end_;
  Real* const volume_;
  const int64_t width_;
  Matrix matrix_;
  Real gain_;
  bool straight_;
  std::vector<Real> sampled_, line_;
  AxisTable<Real> taps_;
  int64_t first_ = 0;  // the volume's column where line_ starts
};

template <class Real>
void scatter_as(const Request& request, ScalarType dtype, Tensor& volume) {
  const ReadRow<Real> read =
      for_float_dtype(dtype, "grad", []<class Grad>() -> ReadRow<Real> { return read_row<Grad, Real>; });
  Real* const data = static_cast<Real*>(volume.mutable_data_ptr());
  const int axis = request.lengths[0] >= request.lengths[1] ? 0 : 1;
  torch::stable::parallel_for(0, request.lengths[axis], 1, [&](int64_t begin, int64_t end) {
    Scatter<Real>(request, read, axis, begin, end, data).run_all();
  });
}

Tensor window_resample_backward(Tensor grad, std::optional<Tensor> result, std::vector<int64_t> shape, Tensor matrix,
                                Tensor scale, std::optional<Tensor> window, bool fill, bool nearest,
                                ScalarType dtype) {
  check_window_resample_backward(grad, result, shape, matrix, scale, window);
  const bool wide = needs_double(dtype, grad.scalar_type());
  Tensor volume = new_result(grad, shape, wide ? ScalarType::Double : ScalarType::Float);
  torch::stable::zero_(volume);
  const Request request{grad.const_data_ptr(),
                        result ? result->const_data_ptr() : nullptr,
                        ParameterRows(matrix),
                        ParameterRows(scale),
                        ParameterRows(window),
                        grad.size(0),
                        {grad.size(1), grad.size(2), grad.size(3)},
                        {static_cast<int32_t>(shape[0]), static_cast<int32_t>(shape[1]),
                         static_cast<int32_t>(shape[2])},
                        fill,
                        nearest};
  wide ? scatter_as<double>(request, grad.scalar_type(), volume)
       : scatter_as<float>(request, grad.scalar_type(), volume);
  return volume;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("window_resample_backward", TORCH_BOX(&fastmed::window_resample_backward));
}
