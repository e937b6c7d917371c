// window_resample on CUDA: one thread per few voxels of an output row, any matrix alike.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <type_traits>

#include "checks.h"
#include "cuda/launch.cuh"
#include "cuda/lines.cuh"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

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
    taps[axis] = tap_at<Real>(position, volume.lengths[axis], false, has_fill);
  }
  return {interpolate_corners<Real>(volume.data, volume.stride_z, volume.stride_y, taps),
          Real(1) - taps[0].coverage * taps[1].coverage * taps[2].coverage};
}

// Taps along z and y that all voxels of a row share, as four rows of the volume.
template <class Voxel, class Real>
struct SharedRows {
  const Voxel* rows[4];
  Real weights[4], coverage;
};

template <class Voxel, class Real>
__device__ __forceinline__ SharedRows<Voxel, Real> shared_rows(const VolumeView<Voxel>& volume, const Line& line,
                                                               bool has_fill) {
  const Tap<Real> z = tap_at<Real>(line.start[0], volume.lengths[0], false, has_fill);
  const Tap<Real> y = tap_at<Real>(line.start[1], volume.lengths[1], false, has_fill);
  SharedRows<Voxel, Real> shared;
  shared.coverage = z.coverage * y.coverage;
  for (int row = 0; row < 4; ++row) {
    shared.rows[row] = volume.data + (row & 2 ? z.high : z.low) * volume.stride_z +
                       (row & 1 ? y.high : y.low) * volume.stride_y;
    shared.weights[row] = (row & 2 ? z.weight_high : z.weight_low) * (row & 1 ? y.weight_high : y.weight_low);
  }
  return shared;
}

// Integers are never NaN, so those that weigh nothing need no exception.
template <class Voxel, class Real>
__device__ __forceinline__ Real weigh(Real weight, Voxel voxel) {
  return std::is_integral_v<Voxel> ? weight * static_cast<Real>(voxel) : weighted(weight, static_cast<Real>(voxel));
}

template <class Voxel, class Real>
__device__ __forceinline__ Sample<Real> sample_row(const SharedRows<Voxel, Real>& shared, double position,
                                                   int32_t length, bool has_fill) {
  const Tap<Real> x = tap_at<Real>(position, length, false, has_fill);
  Real low = 0, high = 0;
  for (int row = 0; row < 4; ++row) {
    low += weigh(shared.weights[row], shared.rows[row][x.low]);
    high += weigh(shared.weights[row], shared.rows[row][x.high]);
  }
  return {weighted(x.weight_low, low) + weighted(x.weight_high, high), Real(1) - shared.coverage * x.coverage};
}

// A row of output that runs along a row of the volume takes its z and y taps once.
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
  Out* const row = out + place.row * size.width;
  const auto finish = [&](int64_t x, const Sample<Real>& sample) {
    row[x] = convert<Out>(apply(intensity, sample.value, sample.uncovered));
  };
  if (parameters.nearest) {
    for (int64_t x = place.first; x < size.width; x += place.step) {
      finish(x, sample_nearest<Voxel, Real>(volume, line, static_cast<int32_t>(x), has_fill));
    }
  } else if (line.step[0] == 0.0 && line.step[1] == 0.0) {
    const SharedRows<Voxel, Real> shared = shared_rows<Voxel, Real>(volume, line, has_fill);
    for (int64_t x = place.first; x < size.width; x += place.step) {
      const double position = line.at(2, static_cast<int32_t>(x));
      finish(x, sample_row<Voxel, Real>(shared, position, volume.lengths[2], has_fill));
    }
  } else {
    for (int64_t x = place.first; x < size.width; x += place.step) {
      finish(x, sample_linear<Voxel, Real>(volume, line, static_cast<int32_t>(x), has_fill));
    }
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
  launch(window_resample_kernel<Voxel, Real, Out>, grid, row_block(), 0, current_stream(volume), view, parameters, rows,
         size, out);
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
  const int64_t outputs = check_window_resample(volumes, matrix, size, scale, shift, window, fill, nearest, dtype);
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

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("window_resample", TORCH_BOX(&fastmed::window_resample));
}
