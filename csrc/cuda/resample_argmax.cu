// resample_argmax on CUDA: labels of the grid, then interpolation where the labels around a point differ.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "cuda/launch.cuh"
#include "cuda/lines.cuh"
#include "dtypes.h"
#include "math/argmax.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

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
    launch(argmax_kernel<Logit, Label>, blocks, kThreads, 0, stream, item, task.classes, voxels, map);
    launch(resample_argmax_kernel<Logit, Label>, grid, row_block(), 0, stream, item, map, task, item_out);
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
  m.impl("resample_argmax", TORCH_BOX(&fastmed::resample_argmax));
}
