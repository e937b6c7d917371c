// softmax_overlap on CUDA: sums per thread, then per block, then over the blocks, always in the same order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "checks.h"
#include "cuda/labels.cuh"
#include "cuda/launch.cuh"
#include "dtypes.h"
#include "math/overlap.h"
#include "math/sampling.h"
#include "math/softmax.h"

namespace fastmed {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpLanes = 32;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int64_t kVoxelsPerThread = 8;
constexpr int64_t kMaxBlocks = 4096;           // per item; each leaves one partial sum per class and column
constexpr int64_t kMaxSharedBytes = 48 * 1024;  // what a block may hold without asking for more
constexpr int64_t kMaxGridZ = 65535;

template <class Logit>
using RealOf = std::conditional_t<std::is_same_v<Logit, double>, double, float>;

// Classes whose sums a block holds for all its threads at once.
template <class Real>
constexpr int64_t kTileClasses = kMaxSharedBytes / (kOverlapColumns * kThreads * sizeof(Real));

// Logits [items, classes, voxels], target [items, voxels].
template <class Logit>
struct SoftmaxTask {
  const Logit* logits;
  const void* target;
  ScalarType target_dtype;
  int64_t items, classes, voxels;
  bool has_ignore;
  int64_t ignore_index;
};

// One voxel: its logits, a step of task.voxels apart, and the channel of its target.
template <class Logit>
struct Voxel {
  using Real = RealOf<Logit>;

  const Logit* logits;
  int64_t stride, classes;
  int32_t target;
  Real highest;

  __device__ __forceinline__ Real logit(int64_t channel) const { return static_cast<Real>(logits[channel * stride]); }

  __device__ __forceinline__ Real exponential(int64_t channel) const {
    return classes == 1 ? sigmoid_of(logit(0)) : exp_nonpositive(logit(channel) - highest);
  }
};

template <class Logit>
__device__ __forceinline__ Voxel<Logit> voxel_at(const SoftmaxTask<Logit>& task, int64_t item, int64_t index) {
  const int64_t label = load_label(task.target, task.target_dtype, item * task.voxels + index);
  Voxel<Logit> voxel{task.logits + item * task.classes * task.voxels + index, task.voxels, task.classes,
                     target_channel(label, task.classes, task.has_ignore, task.ignore_index), 0};
  voxel.highest = voxel.logit(0);
  for (int64_t channel = 1; channel < task.classes; ++channel) {
    voxel.highest = larger_logit(voxel.highest, voxel.logit(channel));
  }
  return voxel;
}

__device__ __forceinline__ double warp_sum(double value) {
  for (int offset = kWarpLanes / 2; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;  // lane 0 holds the sum
}

// Partial sums [items, classes, kOverlapColumns, blocks]. Each thread has a column of the shared sums of its own.
template <class Logit>
__global__ void sum_kernel(SoftmaxTask<Logit> task, int64_t tile, double* __restrict__ partial) {
  using Real = RealOf<Logit>;
  FASTMED_DYNAMIC_SHARED(double, shared);
  Real* const sums = reinterpret_cast<Real*>(shared);
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;

  for (int64_t item = blockIdx.y; item < task.items; item += gridDim.y) {
    for (int64_t first = blockIdx.z * tile; first < task.classes; first += gridDim.z * tile) {
      const int64_t end = first + tile < task.classes ? first + tile : task.classes;
      const int64_t rows = (end - first) * kOverlapColumns;
      for (int64_t row = 0; row < rows; ++row) sums[row * kThreads + threadIdx.x] = Real(0);

      for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < task.voxels; i += step) {
        const Voxel<Logit> voxel = voxel_at(task, item, i);
        if (voxel.target == kIgnored) continue;
        Real scale = 1;
        if (task.classes > 1) {
          Real total = 0;
          for (int64_t channel = 0; channel < task.classes; ++channel) total += voxel.exponential(channel);
          scale = Real(1) / total;
        }
        for (int64_t channel = first; channel < end; ++channel) {
          Real* const own = sums + (channel - first) * kOverlapColumns * kThreads + threadIdx.x;
          const Real probability = voxel.exponential(channel) * scale;
          own[kPrediction * kThreads] += probability;
          if (channel == voxel.target) {
            own[kIntersection * kThreads] += probability;
            own[kTarget * kThreads] += Real(1);
          }
        }
      }

      __syncthreads();
      for (int64_t row = warp; row < rows; row += kWarps) {
        double total = 0;
        for (int thread = lane; thread < kThreads; thread += kWarpLanes) total += sums[row * kThreads + thread];
        total = warp_sum(total);
        const int64_t sum_index = (item * task.classes + first) * kOverlapColumns + row;
        if (lane == 0) partial[sum_index * gridDim.x + blockIdx.x] = total;
      }
      __syncthreads();
    }
  }
}

template <class Real>
struct Columns {
  Real* data[kOverlapColumns];  // [items, classes] each
};

// One warp per sum.
template <class Real>
__global__ void reduce_kernel(const double* __restrict__ partial, int64_t blocks, int64_t sums, Columns<Real> columns) {
  const int lane = threadIdx.x % kWarpLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpLanes;
  for (int64_t sum = first; sum < sums; sum += static_cast<int64_t>(gridDim.x) * kWarps) {
    double total = 0;
    for (int64_t block = lane; block < blocks; block += kWarpLanes) total += partial[sum * blocks + block];
    total = warp_sum(total);
    if (lane == 0) columns.data[sum % kOverlapColumns][sum / kOverlapColumns] = static_cast<Real>(total);
  }
}

template <class Logit>
__global__ void gradient_kernel(SoftmaxTask<Logit> task, const RealOf<Logit>* __restrict__ grad_intersection,
                                const RealOf<Logit>* __restrict__ grad_prediction, Logit* __restrict__ gradient) {
  using Real = RealOf<Logit>;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = blockIdx.y; item < task.items; item += gridDim.y) {
    const Real* const for_intersection = grad_intersection + item * task.classes;
    const Real* const for_prediction = grad_prediction + item * task.classes;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < task.voxels; i += step) {
      const Voxel<Logit> voxel = voxel_at(task, item, i);
      const auto gain = [&](int64_t channel) {
        return class_gain(for_intersection[channel], for_prediction[channel], channel == voxel.target);
      };
      Real total = 0, expected = 0;
      for (int64_t channel = 0; channel < task.classes; ++channel) {
        const Real exponential = voxel.exponential(channel);
        total += exponential;
        expected += exponential * gain(channel);
      }
      const Real scale = task.classes == 1 ? Real(1) : Real(1) / total;
      expected *= scale;
      Logit* const out = gradient + item * task.classes * task.voxels + i;
      for (int64_t channel = 0; channel < task.classes; ++channel) {
        out[channel * task.voxels] = convert<Logit>(
            logit_gradient(voxel.exponential(channel), scale, gain(channel), expected, voxel.target));
      }
    }
  }
}

template <class Logit>
SoftmaxTask<Logit> task_of(const Tensor& logits, const Tensor& target, const std::optional<int64_t>& ignore_index) {
  return {static_cast<const Logit*>(logits.const_data_ptr()),
          target.const_data_ptr(),
          target.scalar_type(),
          logits.size(0),
          logits.size(1),
          logits.size(2),
          ignore_index.has_value(),
          ignore_index.value_or(0)};
}

unsigned items_in_grid(int64_t items) { return static_cast<unsigned>(std::min(kMaxGridY, items)); }

template <class Logit>
void launch_sums(const SoftmaxTask<Logit>& task, const Tensor& logits, Columns<RealOf<Logit>> columns) {
  using Real = RealOf<Logit>;
  const cudaStream_t stream = current_stream(logits);
  const int64_t blocks =
      std::clamp(ceil_div(task.voxels, kThreads * kVoxelsPerThread), static_cast<int64_t>(1), kMaxBlocks);
  const int64_t sums = task.items * task.classes * kOverlapColumns;
  Tensor partial = torch::stable::new_empty(logits, {sums * blocks}, ScalarType::Double);
  double* const partial_sums = static_cast<double*>(partial.mutable_data_ptr());

  const int64_t tile = std::min(task.classes, kTileClasses<Real>);
  const dim3 grid(static_cast<unsigned>(blocks), items_in_grid(task.items),
                  static_cast<unsigned>(std::min(kMaxGridZ, ceil_div(task.classes, tile))));
  launch(sum_kernel<Logit>, grid, dim3(kThreads), tile * kOverlapColumns * kThreads * sizeof(Real), stream, task, tile,
         partial_sums);
  const dim3 sum_blocks(static_cast<unsigned>(std::min(kMaxGridX, ceil_div(sums, kWarps))));
  launch(reduce_kernel<Real>, sum_blocks, dim3(kThreads), 0, stream, static_cast<const double*>(partial_sums), blocks,
         sums, columns);
}

std::tuple<Tensor, Tensor, Tensor> softmax_overlap(Tensor logits, Tensor target, std::optional<int64_t> ignore_index) {
  check_softmax_overlap(logits, target);
  const DeviceGuard guard(logits.get_device_index());
  Tensor sums[kOverlapColumns];
  for (Tensor& column : sums) {
    column = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)}, sums_dtype(logits.scalar_type()));
  }
  for_float_dtype(logits.scalar_type(), "logits", [&]<class Logit>() {
    using Real = RealOf<Logit>;
    if (logits.size(0) == 0) return;
    Columns<Real> columns;
    for (int i = 0; i < kOverlapColumns; ++i) columns.data[i] = static_cast<Real*>(sums[i].mutable_data_ptr());
    launch_sums(task_of<Logit>(logits, target, ignore_index), logits, columns);
  });
  return {sums[kIntersection], sums[kPrediction], sums[kTarget]};
}

Tensor softmax_overlap_backward(Tensor grad_intersection, Tensor grad_prediction, Tensor logits, Tensor target,
                                std::optional<int64_t> ignore_index) {
  check_softmax_overlap(logits, target);
  check_softmax_overlap_gradient(grad_intersection, logits, "grad_intersection");
  check_softmax_overlap_gradient(grad_prediction, logits, "grad_prediction");
  const DeviceGuard guard(logits.get_device_index());
  Tensor gradient = torch::stable::new_empty(logits, {logits.size(0), logits.size(1), logits.size(2)});
  for_float_dtype(logits.scalar_type(), "logits", [&]<class Logit>() {
    using Real = RealOf<Logit>;
    if (logits.numel() == 0) return;
    const SoftmaxTask<Logit> task = task_of<Logit>(logits, target, ignore_index);
    const dim3 grid(static_cast<unsigned>(std::min(kMaxGridX, ceil_div(task.voxels, kThreads))),
                    items_in_grid(task.items));
    launch(gradient_kernel<Logit>, grid, dim3(kThreads), 0, current_stream(logits), task,
           static_cast<const Real*>(grad_intersection.const_data_ptr()),
           static_cast<const Real*>(grad_prediction.const_data_ptr()),
           static_cast<Logit*>(gradient.mutable_data_ptr()));
  });
  return gradient;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("softmax_overlap", TORCH_BOX(&fastmed::softmax_overlap));
  m.impl("softmax_overlap_backward", TORCH_BOX(&fastmed::softmax_overlap_backward));
}
