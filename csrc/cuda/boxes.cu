// box_iou and its backward on CUDA: tiles of pairs, and for the gradient one block per box or strip of boxes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "box_checks.h"
#include "cuda/launch.cuh"
#include "math/box.h"

namespace fastmed {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 64;
constexpr int kWarp = 32;

// Two sets of boxes per item; pairs count through count1 x count2 of each item.
template <class Real>
struct PairTask {
  const Real *boxes1, *boxes2;
  int64_t items, count1, count2;
};

// A tile is kTileRows boxes of the first set, in shared memory, against blockDim.x of the second, in registers.
template <class Real, int kAxes, bool kGeneralized>
__global__ void __launch_bounds__(kThreads)
    box_iou_kernel(PairTask<Real> task, int64_t row_tiles, int64_t column_tiles, Real* __restrict__ out) {
  __shared__ Real rows[kTileRows][2 * kAxes];
  __shared__ Real row_volumes[kTileRows];
  const int64_t tile = blockIdx.x;
  const int64_t item = tile / column_tiles / row_tiles;
  const int64_t first_row = tile / column_tiles % row_tiles * kTileRows;
  const int64_t column = tile % column_tiles * blockDim.x + threadIdx.x;
  const auto count = static_cast<int>(min(static_cast<int64_t>(kTileRows), task.count1 - first_row));

  const Real* const own = task.boxes1 + (item * task.count1 + first_row) * 2 * kAxes;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int i = thread; i < count * 2 * kAxes; i += kThreads) rows[i / (2 * kAxes)][i % (2 * kAxes)] = own[i];
  __syncthreads();
  if (thread < count) row_volumes[thread] = volume(load_box<Real, kAxes>(rows[thread]));
  __syncthreads();
  if (column >= task.count2) return;

  const auto other = load_box<Real, kAxes>(task.boxes2 + (item * task.count2 + column) * 2 * kAxes);
  const Real other_volume = volume(other);
  Real* const line = out + (item * task.count1 + first_row) * task.count2 + column;
  for (int row = threadIdx.y; row < count; row += blockDim.y) {
    line[row * task.count2] =
        box_overlap<kGeneralized>(load_box<Real, kAxes>(rows[row]), row_volumes[row], other, other_volume);
  }
}

template <class Real, int kAxes>
void launch_box_iou(const PairTask<Real>& task, bool generalized, cudaStream_t stream, Real* out) {
  // Narrow tiles for few columns, so that most threads of a block have a pair.
  unsigned width = kWarp;
  while (width < kThreads && width < task.count2) width *= 2;
  const int64_t row_tiles = ceil_div(task.count1, kTileRows), column_tiles = ceil_div(task.count2, width);
  const int64_t blocks = task.items * row_tiles * column_tiles;
  STD_TORCH_CHECK(blocks <= kMaxGridX, "boxes1: too many pairs for one launch");
  const auto kernel = generalized ? box_iou_kernel<Real, kAxes, true> : box_iou_kernel<Real, kAxes, false>;
  launch(kernel, static_cast<unsigned>(blocks), dim3(width, kThreads / width), 0, stream, task, row_tiles, column_tiles,
         out);
}

Tensor box_iou(Tensor boxes1, Tensor boxes2, bool generalized) {
  const BoxSets sets = check_box_sets(boxes1, boxes2);
  const DeviceGuard guard(boxes1.get_device_index());
  Tensor out = torch::stable::new_empty(boxes1, overlap_shape(boxes1, boxes2));
  for_box_type(boxes1, "boxes1", [&]<class Real, int kAxes>() {
    if (out.numel() == 0) return;
    const PairTask<Real> task{static_cast<const Real*>(boxes1.const_data_ptr()),
                              static_cast<const Real*>(boxes2.const_data_ptr()), sets.items, sets.count1, sets.count2};
    launch_box_iou<Real, kAxes>(task, generalized, current_stream(boxes1), static_cast<Real*>(out.mutable_data_ptr()));
  });
  return out;
}

// The weight of a pair, by the strides of item, own box and other box.
template <class Real>
struct PairWeights {
  const Real* data;
  int64_t stride_item, stride_own, stride_other;
};

// blockDim.y boxes of the first set, each summed over the second in steps of blockDim.x, or with kStrip the reverse:
// blockDim.x boxes, in steps of blockDim.y. Either way neighbouring threads read neighbouring weights. The order of
// all sums is fixed.
template <class Real, int kAxes, bool kGeneralized, bool kStrip>
__global__ void __launch_bounds__(kThreads)
    box_iou_backward_kernel(PairTask<Real> task, PairWeights<Real> weights, int64_t tiles, Real* __restrict__ out) {
  __shared__ Real parts[kThreads];
  const int own_lane = kStrip ? threadIdx.x : threadIdx.y, other_lane = kStrip ? threadIdx.y : threadIdx.x;
  const int own_lanes = kStrip ? blockDim.x : blockDim.y, other_lanes = kStrip ? blockDim.y : blockDim.x;
  const int64_t item = blockIdx.x / tiles;
  const int64_t index = blockIdx.x % tiles * own_lanes + own_lane;
  const bool present = index < task.count1;

  Real sums[2 * kAxes];
  for (int corner = 0; corner < 2 * kAxes; ++corner) sums[corner] = Real(0);
  if (present) {
    const auto own = load_box<Real, kAxes>(task.boxes1 + (item * task.count1 + index) * 2 * kAxes);
    const Real* const pairs = weights.data + item * weights.stride_item + index * weights.stride_own;
    const Real* const others = task.boxes2 + item * task.count2 * 2 * kAxes;
    for (int64_t other = other_lane; other < task.count2; other += other_lanes) {
      const auto derivative = overlap_derivative<kGeneralized>(own, load_box<Real, kAxes>(others + other * 2 * kAxes),
                                                               pairs[other * weights.stride_other]);
      for (int axis = 0; axis < kAxes; ++axis) {
        sums[axis] += derivative.low[axis];
        sums[kAxes + axis] += derivative.high[axis];
      }
    }
  }
  for (int corner = 0; corner < 2 * kAxes; ++corner) {
    Real* const part = parts + own_lane * other_lanes;
    part[other_lane] = sums[corner];
    for (int reach = other_lanes / 2; reach > 0; reach /= 2) {
      __syncthreads();
      if (other_lane < reach) part[other_lane] += part[other_lane + reach];
    }
    if (present && other_lane == 0) out[(item * task.count1 + index) * 2 * kAxes + corner] = part[0];
    __syncthreads();
  }
}

template <class Real, int kAxes>
void launch_box_iou_backward(const PairTask<Real>& task, const PairWeights<Real>& weights, bool generalized,
                             cudaStream_t stream, Real* out) {
  const bool strip = weights.stride_own == 1 && weights.stride_other != 1;
  const dim3 block(kWarp, kThreads / kWarp);
  const int64_t tiles = ceil_div(task.count1, strip ? block.x : block.y);
  STD_TORCH_CHECK(task.items * tiles <= kMaxGridX, "boxes1: too many boxes for one launch");
  const auto kernel = generalized ? (strip ? box_iou_backward_kernel<Real, kAxes, true, true>
                                           : box_iou_backward_kernel<Real, kAxes, true, false>)
                                  : (strip ? box_iou_backward_kernel<Real, kAxes, false, true>
                                           : box_iou_backward_kernel<Real, kAxes, false, false>);
  launch(kernel, static_cast<unsigned>(task.items * tiles), block, 0, stream, task, weights, tiles, out);
}

// The gradient of boxes1; that of boxes2 is the same with the two exchanged and grad transposed.
Tensor box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, bool generalized) {
  const BoxSets sets = check_box_iou_backward(grad, boxes1, boxes2);
  const DeviceGuard guard(boxes1.get_device_index());
  Tensor out = torch::stable::new_empty(boxes1, {sets.items, sets.count1, boxes1.size(2)});
  for_box_type(boxes1, "boxes1", [&]<class Real, int kAxes>() {
    if (out.numel() == 0) return;
    const PairTask<Real> task{static_cast<const Real*>(boxes1.const_data_ptr()),
                              static_cast<const Real*>(boxes2.const_data_ptr()), sets.items, sets.count1, sets.count2};
    const PairWeights<Real> weights{static_cast<const Real*>(grad.const_data_ptr()), grad.stride(0), grad.stride(1),
                                    grad.stride(2)};
    launch_box_iou_backward<Real, kAxes>(task, weights, generalized, current_stream(boxes1),
                                         static_cast<Real*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("box_iou", TORCH_BOX(&fastmed::box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&fastmed::box_iou_backward));
}
