// window_resample and resample_argmax on CUDA: one thread per few voxels of an output row, any matrix alike.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <type_traits>

#include "checks.h"
#include "cuda/launch.cuh"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

struct Shape {
  int32_t depth, height, width;
};

Shape shape_of(const std::vector<int64_t>& size) {
  return {static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1]), static_cast<int32_t>(size[2])};
}

// Input positions along one output row: start + step * x in each axis.
struct Line {
  double start[3], step[3];

  __device__ __forceinline__ double at(int axis, int32_t x) const {
    return start[axis] + step[axis] * static_cast<double>(x);
  }
};

__device__ __forceinline__ Line line_of(const double* matrix, int64_t z, int64_t y) {
  Matrix rows;
  for (int i = 0; i < 12; ++i) rows.rows[i / 4][i % 4] = matrix[i];
  Line line;
  for (int axis = 0; axis < 3; ++axis) {
    line.start[axis] = row_start(rows, axis, static_cast<double>(z), static_cast<double>(y));
    line.step[axis] = rows.rows[axis][2];
  }
  return line;
}

template <class Voxel>
struct VolumeView {
  const Voxel* data;
  int64_t stride_z, stride_y;
  int32_t lengths[3];
};

struct WindowParameters {
  DeviceParameters matrix, scale, shift, window, fill;
  int64_t first_output;  // of the launch, among those of the call
  bool nearest;
};

template <class Real>
struct Sample {
  Real value, uncovered;
};

template <class Voxel, class Real>
__device__ __forceinline__ Sample<Real> sample_nearest(const VolumeView<Voxel>& volume, const Line& line, int32_t x,
                                                       bool has_fill) {
  int64_t index[3];
  bool inside = true;
  for (int axis = 0; axis < 3; ++axis) {
    const int32_t nearest = nearest_index(line.at(axis, x), volume.lengths[axis]);
    index[axis] = clamp_index(nearest, volume.lengths[axis]);
    inside = inside && nearest == index[axis];
  }
  if (has_fill && !inside) return {Real(0), Real(1)};
  return {static_cast<Real>(volume.data[index[0] * volume.stride_z + index[1] * volume.stride_y + index[2]]), Real(0)};
}

template <class Voxel, class Real>
__device__ __forceinline__ Sample<Real> sample_linear(const VolumeView<Voxel>& volume, const Line& line, int32_t x,
                                                      bool has_fill) {
  Tap<Real> taps[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double position = line.at(axis, x);
    taps[axis] = has_fill ? fill_tap<Real>(position, volume.lengths[axis])
                          : edge_tap<Real>(position, volume.lengths[axis]);
  }
  return {interpolate_corners<Real>(volume.data, volume.stride_z, volume.stride_y, taps),
          Real(1) - taps[0].coverage * taps[1].coverage * taps[2].coverage};
}

template <class Voxel, class Real, class Out>
__global__ void window_resample_kernel(VolumeView<Voxel> volume, WindowParameters parameters, int64_t rows, Shape size,
                                       Out* __restrict__ out) {
  __shared__ Line lines[kRowsPerBlock];
  __shared__ Intensity<Real> intensities[kRowsPerBlock];
  const RowPlace place = row_place();
  if (place.row < rows && threadIdx.x == 0) {
    const int64_t plane_row = place.row % (static_cast<int64_t>(size.depth) * size.height);
    const int64_t output = parameters.first_output + place.row / (static_cast<int64_t>(size.depth) * size.height);
    lines[threadIdx.y] = line_of(parameters.matrix.row(output), plane_row / size.height, plane_row % size.height);
    intensities[threadIdx.y] = make_intensity<Real>(*parameters.scale.row(output), *parameters.shift.row(output),
                                                    parameters.window.row(output), parameters.fill.row(output));
  }
  __syncthreads();
  if (place.row >= rows) return;

  const Line line = lines[threadIdx.y];
  const Intensity<Real> intensity = intensities[threadIdx.y];
  const bool has_fill = parameters.fill.data != nullptr;
  for (int64_t x = place.first; x < size.width; x += place.step) {
    const auto column = static_cast<int32_t>(x);
    const Sample<Real> sample = parameters.nearest ? sample_nearest<Voxel, Real>(volume, line, column, has_fill)
                                                   : sample_linear<Voxel, Real>(volume, line, column, has_fill);
    out[place.row * size.width + x] = convert<Out>(apply(intensity, sample.value, sample.uncovered));
  }
}

template <class Voxel, class Real, class Out>
void launch_window_resample(const Tensor& volume, const WindowParameters& parameters, int64_t rows, Shape size,
                            Out* out) {
  const VolumeView<Voxel> view{static_cast<const Voxel*>(volume.const_data_ptr()),
                               volume.stride(0),
                               volume.stride(1),
                               {static_cast<int32_t>(volume.size(0)), static_cast<int32_t>(volume.size(1)),
                                static_cast<int32_t>(volume.size(2))}};
  const dim3 grid = row_grid(rows, size.width);
  window_resample_kernel<Voxel, Real, Out>
      <<<grid, row_block(), 0, current_stream(volume)>>>(view, parameters, rows, size, out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// float64 out and the voxels that float32 cannot hold take float64 arithmetic; integers out are the volume's own.
template <class Voxel, class Out>
constexpr bool kSupported = !std::is_integral_v<Out> || std::is_same_v<Voxel, Out>;
template <class Voxel, class Out>
constexpr bool kDouble =
    std::is_same_v<Voxel, double> || std::is_same_v<Voxel, int32_t> || std::is_same_v<Out, double>;

Tensor window_resample(std::vector<Tensor> volumes, Tensor matrix, std::vector<int64_t> size, Tensor scale,
                       Tensor shift, std::optional<Tensor> window, std::optional<Tensor> fill, bool nearest,
                       ScalarType dtype) {
  const int64_t outputs = check_window_resample(volumes, matrix, size, scale, shift, window, fill);
  const DeviceGuard guard(volumes[0].get_device_index());
  Tensor out = torch::stable::new_empty(volumes[0], {outputs, size[0], size[1], size[2]}, dtype);
  if (outputs == 0) return out;
  WindowParameters parameters{device_parameters(matrix), device_parameters(scale), device_parameters(shift),
                              device_parameters(window), device_parameters(fill),  0,
                              nearest};
  const int64_t volume_outputs = volumes.size() == 1 ? outputs : 1;
  const int64_t rows = volume_outputs * size[0] * size[1];
  for_voxel_dtype(volumes[0].scalar_type(), "volume", [&]<class Voxel>() {
    for_voxel_dtype(dtype, "dtype", [&]<class Out>() {
      if constexpr (kSupported<Voxel, Out>) {
        using Real = std::conditional_t<kDouble<Voxel, Out>, double, float>;
        Out* data = static_cast<Out*>(out.mutable_data_ptr());
        for (const Tensor& volume : volumes) {
          launch_window_resample<Voxel, Real, Out>(volume, parameters, rows, shape_of(size), data);
          parameters.first_output += volume_outputs;
          data += rows * size[2];
        }
      } else {
        STD_TORCH_CHECK(false, "dtype: an integer dtype must be the volume's own");
      }
    });
  });
  return out;
}

template <class Logit>
using RealOf = std::conditional_t<std::is_same_v<Logit, double>, double, float>;

// Labels of the model's own grid.
template <class Logit, class Label>
__global__ void argmax_kernel(const Logit* __restrict__ logits, int64_t classes, int64_t voxels,
                              Label* __restrict__ labels) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < voxels; i += step) {
    const auto logit = [=](int64_t channel) { return static_cast<RealOf<Logit>>(logits[channel * voxels + i]); };
    labels[i] = static_cast<Label>(argmax_of(classes, logit));
  }
}

struct LabelTask {
  DeviceParameters matrix;
  int64_t item, classes;
  Shape grid, size;
  bool has_outside;
  int64_t outside;
};

// Where the eight labels around a point agree, all classes' common weights leave it no other.
template <class Logit, class Label>
__global__ void resample_argmax_kernel(const Logit* __restrict__ logits, const Label* __restrict__ labels,
                                       LabelTask task, Label* __restrict__ out) {
  using Real = RealOf<Logit>;
  const RowPlace place = row_place();
  if (place.row >= static_cast<int64_t>(task.size.depth) * task.size.height) return;

  const Line line = line_of(task.matrix.row(task.item), place.row / task.size.height, place.row % task.size.height);
  const int32_t lengths[3] = {task.grid.depth, task.grid.height, task.grid.width};
  const int64_t stride_y = task.grid.width, stride_z = stride_y * task.grid.height;
  const int64_t voxels = stride_z * task.grid.depth;
  for (int64_t x = place.first; x < task.size.width; x += place.step) {
    Label* const voxel = out + place.row * task.size.width + x;
    Tap<Real> taps[3];
    bool beyond = false;
    for (int axis = 0; axis < 3; ++axis) {
      const double position = line.at(axis, static_cast<int32_t>(x));
      taps[axis] = edge_tap<Real>(position, lengths[axis]);
      beyond = beyond || is_outside(position, lengths[axis]);
    }
    if (task.has_outside && beyond) {
      *voxel = static_cast<Label>(task.outside);
      continue;
    }
    const auto label_at = [&](int corner) {
      return labels[(corner & 4 ? taps[0].high : taps[0].low) * stride_z +
                    (corner & 2 ? taps[1].high : taps[1].low) * stride_y + (corner & 1 ? taps[2].high : taps[2].low)];
    };
    const Label label = label_at(0);
    bool same = true;
    for (int corner = 1; corner < 8; ++corner) same = same && label_at(corner) == label;
    if (same) {
      *voxel = label;
      continue;
    }
    const auto interpolated = [&](int64_t channel) {
      return interpolate_corners<Real>(logits + channel * voxels, stride_z, stride_y, taps);
    };
    *voxel = static_cast<Label>(argmax_of(task.classes, interpolated));
  }
}

template <class Logit, class Label>
void launch_resample_argmax(const Tensor& logits, LabelTask task, Tensor& labels, Tensor& out) {
  const cudaStream_t stream = current_stream(logits);
  const int64_t voxels = labels.numel();
  const int64_t rows = static_cast<int64_t>(task.size.depth) * task.size.height;
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>(std::min(kMaxGridX, ceil_div(voxels, kThreads)));
  const dim3 grid = row_grid(rows, task.size.width);
  Label* const map = static_cast<Label*>(labels.mutable_data_ptr());
  for (; task.item < logits.size(0); ++task.item) {
    const Logit* const item = static_cast<const Logit*>(logits.const_data_ptr()) + task.item * task.classes * voxels;
    Label* const item_out = static_cast<Label*>(out.mutable_data_ptr()) + task.item * rows * task.size.width;
    argmax_kernel<Logit, Label><<<blocks, kThreads, 0, stream>>>(item, task.classes, voxels, map);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    resample_argmax_kernel<Logit, Label><<<grid, row_block(), 0, stream>>>(item, map, task, item_out);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

Tensor resample_argmax(Tensor logits, Tensor matrix, std::vector<int64_t> size, std::optional<int64_t> outside) {
  check_resample_argmax(logits, matrix, size);
  const DeviceGuard guard(logits.get_device_index());
  const ScalarType dtype = label_dtype(logits.size(1));
  Tensor out = torch::stable::new_empty(logits, {logits.size(0), size[0], size[1], size[2]}, dtype);
  Tensor labels = torch::stable::new_empty(logits, {logits.size(2), logits.size(3), logits.size(4)}, dtype);
  const LabelTask task{device_parameters(matrix),
                       0,
                       logits.size(1),
                       shape_of({logits.size(2), logits.size(3), logits.size(4)}),
                       shape_of(size),
                       outside.has_value(),
                       outside.value_or(0)};
  for_float_dtype(logits.scalar_type(), "logits", [&]<class Logit>() {
    dtype == ScalarType::Byte ? launch_resample_argmax<Logit, uint8_t>(logits, task, labels, out)
                              : launch_resample_argmax<Logit, int16_t>(logits, task, labels, out);
  });
  return out;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("window_resample", TORCH_BOX(&fastmed::window_resample));
  m.impl("resample_argmax", TORCH_BOX(&fastmed::resample_argmax));
}
