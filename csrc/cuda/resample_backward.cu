// Gradient of window_resample on CUDA: sums of whole numbers, which are the same in any order of addition.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <type_traits>

#include "checks.h"
#include "cuda/launch.cuh"
#include "cuda/lines.cuh"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

using Bits = unsigned long long;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;

struct GradientTask {
  const void *grad, *result;  // result is null where nothing was clamped
  DeviceParameters matrix, scale, window;
  int64_t rows;
  Shape size, volume;
  bool has_fill, nearest;
};

// Gradient of one sample: that of the output times the gain, nothing where the window clamped.
template <class Grad>
__device__ __forceinline__ double sample_gradient(const GradientTask& task, int64_t output, int64_t index) {
  if (task.result) {
    const double value = static_cast<double>(static_cast<const Grad*>(task.result)[index]);
    if (!(value > 0.0 && value < 1.0)) return 0.0;
  }
  const double gain =
      make_intensity<double>(*task.scale.row(output), 0.0, task.window.row(output), nullptr).gain;
  return gain * static_cast<double>(static_cast<const Grad*>(task.grad)[index]);
}

__device__ __forceinline__ bool is_finite(double value) { return value - value == 0.0; }

__device__ __forceinline__ int64_t first_index() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t index_step() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__device__ __forceinline__ int64_t output_voxels(const GradientTask& task) {
  return static_cast<int64_t>(task.size.depth) * task.size.height * task.size.width;
}

// found: the largest finite gradient of any sample, and whether others are not. Bits of doubles above zero have the
// order of their values.
template <class Grad>
__global__ void largest_kernel(GradientTask task, Bits* __restrict__ found) {
  __shared__ Bits block_largest;
  if (threadIdx.x == 0) block_largest = 0;
  __syncthreads();
  double own = 0.0;
  const int64_t voxels = output_voxels(task), total = task.rows * task.size.width;
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const double value = fabs(sample_gradient<Grad>(task, i / voxels, i));
    if (!is_finite(value)) found[1] = 1;
    own = is_finite(value) && value > own ? value : own;
  }
  atomicMax(&block_largest, static_cast<Bits>(__double_as_longlong(own)));
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(found, block_largest);
}

// The power of two that turns gradients into whole numbers whose sum over all samples fits 62 bits.
__device__ __forceinline__ int exponent_of(const GradientTask& task, const Bits* largest) {
  const double bound = __longlong_as_double(static_cast<long long>(*largest));
  if (!(bound > 0.0)) return 0;
  const double samples = static_cast<double>(task.rows) * task.size.width;
  return 60 - ilogb(bound) - ilogb(samples) - 2;
}

template <class Visit>
__device__ __forceinline__ void visit_neighbours(const GradientTask& task, int64_t output, int64_t index,
                                                 const Visit& visit) {
  const int64_t x = index % task.size.width, row = index / task.size.width;
  const int64_t y = row % task.size.height, z = row / task.size.height % task.size.depth;
  const Line line = line_of(task.matrix.row(output), z, y);
  const int32_t lengths[3] = {task.volume.depth, task.volume.height, task.volume.width};
  Tap<double> taps[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double position = line.at(axis, static_cast<int32_t>(x));
    taps[axis] = tap_at<double>(position, lengths[axis], task.nearest, task.has_fill);
  }
  visit_corners(taps, [&](int64_t plane, int64_t line_y, int64_t column, double weight) {
    if (weight != 0.0) visit((plane * task.volume.height + line_y) * task.volume.width + column, weight);
  });
}

template <class Grad>
__global__ void scatter_kernel(GradientTask task, const Bits* __restrict__ largest, Bits* __restrict__ sums) {
  const int exponent = exponent_of(task, largest);
  const int64_t voxels = output_voxels(task), total = task.rows * task.size.width;
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const double gradient = sample_gradient<Grad>(task, i / voxels, i);
    if (gradient == 0.0 || !is_finite(gradient)) continue;
    visit_neighbours(task, i / voxels, i, [&](int64_t voxel, double weight) {
      atomicAdd(sums + voxel, static_cast<Bits>(llrint(scalbn(weight * gradient, exponent))));
    });
  }
}

template <class Real>
__global__ void finish_kernel(GradientTask task, const Bits* __restrict__ largest, const Bits* __restrict__ sums,
                              int64_t voxels, Real* __restrict__ volume) {
  const int exponent = exponent_of(task, largest);
  for (int64_t i = first_index(); i < voxels; i += index_step()) {
    volume[i] = static_cast<Real>(scalbn(static_cast<double>(static_cast<long long>(sums[i])), -exponent));
  }
}

// Gradients that are not finite have no place among whole numbers: what they reach becomes NaN.
template <class Grad, class Real>
__global__ void mark_kernel(GradientTask task, const Bits* __restrict__ found, Real* __restrict__ volume) {
  if (found[1] == 0) return;
  const int64_t voxels = output_voxels(task), total = task.rows * task.size.width;
  for (int64_t i = first_index(); i < total; i += index_step()) {
    if (is_finite(sample_gradient<Grad>(task, i / voxels, i))) continue;
    visit_neighbours(task, i / voxels, i, [&](int64_t voxel, double) { volume[voxel] = static_cast<Real>(NAN); });
  }
}

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(kMaxBlocks, ceil_div(count, kThreads))));
}

template <class Grad, class Real>
void launch_gradient(const Tensor& grad, const GradientTask& task, Tensor& sums, Tensor& summary, Tensor& volume) {
  const cudaStream_t stream = current_stream(grad);
  const unsigned blocks = blocks_for(grad.numel());
  Bits* const found = static_cast<Bits*>(summary.mutable_data_ptr());
  Bits* const all = static_cast<Bits*>(sums.mutable_data_ptr());
  Real* const out = static_cast<Real*>(volume.mutable_data_ptr());
  launch(largest_kernel<Grad>, blocks, kThreads, 0, stream, task, found);
  launch(scatter_kernel<Grad>, blocks, kThreads, 0, stream, task, found, all);
  launch(finish_kernel<Real>, blocks_for(volume.numel()), kThreads, 0, stream, task, found, all, volume.numel(), out);
  launch(mark_kernel<Grad, Real>, blocks, kThreads, 0, stream, task, found, out);
}

Tensor window_resample_backward(Tensor grad, std::optional<Tensor> result, std::vector<int64_t> shape, Tensor matrix,
                                Tensor scale, std::optional<Tensor> window, bool fill, bool nearest,
                                ScalarType dtype) {
  check_window_resample_backward(grad, result, shape, matrix, scale, window);
  const DeviceGuard guard(grad.get_device_index());
  const bool wide = needs_double(dtype, grad.scalar_type());
  Tensor volume = torch::stable::new_empty(grad, shape, wide ? ScalarType::Double : ScalarType::Float);
  Tensor sums = torch::stable::new_zeros(grad, shape, ScalarType::Long);
  Tensor summary = torch::stable::new_zeros(grad, {2}, ScalarType::Long);
  const GradientTask task{grad.const_data_ptr(),
                          result ? result->const_data_ptr() : nullptr,
                          device_parameters(matrix),
                          device_parameters(scale),
                          device_parameters(window),
                          grad.size(0) * grad.size(1) * grad.size(2),
                          shape_of({grad.size(1), grad.size(2), grad.size(3)}),
                          shape_of(shape),
                          fill,
                          nearest};
  for_float_dtype(grad.scalar_type(), "grad", [&]<class Grad>() {
    wide ? launch_gradient<Grad, double>(grad, task, sums, summary, volume)
         : launch_gradient<Grad, float>(grad, task, sums, summary, volume);
  });
  return volume;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("window_resample_backward", TORCH_BOX(&fastmed::window_resample_backward));
}
