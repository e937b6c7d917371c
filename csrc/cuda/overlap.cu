// overlap_counts on CUDA: runs of equal pairs in registers, then counts per block, then one addition each.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "checks.h"
#include "cuda/labels.cuh"
#include "cuda/launch.cuh"
#include "math/overlap.h"

namespace fastmed {
namespace {

using Count = unsigned long long;

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 2048;
constexpr int kChunk = 16;                                       // label pairs per thread and step
constexpr int64_t kMaxSharedCounts = 48 * 1024 / sizeof(Count);  // what a block may hold without asking for more

struct OverlapTask {
  const void *prediction, *target;
  ScalarType prediction_dtype, target_dtype;
  int64_t items, voxels, num_classes;
  bool has_ignore;
  int64_t ignore_index;
};

// Label maps are mostly constant, so a thread sees long runs of one pair; counting them needs no atomics.
struct Run {
  int64_t prediction, target;
  Count length;
};

__device__ __forceinline__ void flush(const OverlapTask& task, const Run& run, Count* counts) {
  if (run.length == 0) return;
  count_pair(run.prediction, run.target, task.num_classes, task.has_ignore, task.ignore_index,
             [&](int64_t label, int column) { atomicAdd(counts + label * kOverlapColumns + column, run.length); });
}

__device__ __forceinline__ void extend(const OverlapTask& task, Run& run, int64_t prediction, int64_t target,
                                       Count* counts) {
  if (prediction != run.prediction || target != run.target) {
    flush(task, run, counts);
    run = {prediction, target, 0};
  }
  ++run.length;
}

// Pairs [begin, voxels) of one item in steps of all its threads, any dtypes.
__device__ void count_labels(const OverlapTask& task, int64_t item, int64_t begin, Run& run, Count* counts) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = begin + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < task.voxels; i += step) {
    const int64_t index = item * task.voxels + i;
    extend(task, run, load_label(task.prediction, task.prediction_dtype, index),
           load_label(task.target, task.target_dtype, index), counts);
  }
}

// Whole chunks of an item of byte labels; returns how many pairs they hold.
__device__ int64_t count_byte_chunks(const OverlapTask& task, int64_t item, Run& run, Count* counts) {
  const int64_t chunks = task.voxels / kChunk;
  const uint4* predictions = static_cast<const uint4*>(task.prediction) + item * chunks;
  const uint4* targets = static_cast<const uint4*>(task.target) + item * chunks;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < chunks; i += step) {
    const uint4 prediction = predictions[i], target = targets[i];
    const uint32_t prediction_words[4] = {prediction.x, prediction.y, prediction.z, prediction.w};
    const uint32_t target_words[4] = {target.x, target.y, target.z, target.w};
    for (int word = 0; word < 4; ++word) {
      const uint32_t repeated_prediction = static_cast<uint32_t>(run.prediction) * 0x01010101u;
      const uint32_t repeated_target = static_cast<uint32_t>(run.target) * 0x01010101u;
      if (prediction_words[word] == repeated_prediction && target_words[word] == repeated_target) {
        run.length += 4;
        continue;
      }
      for (int byte = 0; byte < 4; ++byte) {
        extend(task, run, prediction_words[word] >> (8 * byte) & 255, target_words[word] >> (8 * byte) & 255, counts);
      }
    }
  }
  return chunks * kChunk;
}

template <bool kByteChunks, bool kShared>
__global__ void overlap_kernel(OverlapTask task, Count* __restrict__ totals) {
  FASTMED_DYNAMIC_SHARED(Count, block_counts);
  const int64_t num_counts = task.num_classes * kOverlapColumns;
  for (int64_t item = blockIdx.y; item < task.items; item += gridDim.y) {
    Count* const item_totals = totals + item * num_counts;
    Count* const counts = kShared ? block_counts : item_totals;
    if constexpr (kShared) {
      for (int64_t i = threadIdx.x; i < num_counts; i += kThreads) block_counts[i] = 0;
      __syncthreads();
    }
    Run run{0, 0, 0};
    const int64_t counted = kByteChunks ? count_byte_chunks(task, item, run, counts) : 0;
    count_labels(task, item, counted, run, counts);
    flush(task, run, counts);
    if constexpr (kShared) {
      __syncthreads();
      for (int64_t i = threadIdx.x; i < num_counts; i += kThreads) {
        if (block_counts[i] != 0) atomicAdd(item_totals + i, block_counts[i]);
      }
      __syncthreads();
    }
  }
}

bool is_byte(ScalarType dtype) { return dtype == ScalarType::Byte || dtype == ScalarType::Bool; }

bool is_aligned(const void* labels) { return reinterpret_cast<uintptr_t>(labels) % kChunk == 0; }

Tensor overlap_counts(Tensor prediction, Tensor target, int64_t num_classes, std::optional<int64_t> ignore_index) {
  check_overlap_counts(prediction, target, num_classes);
  const DeviceGuard guard(prediction.get_device_index());
  const int64_t items = prediction.size(0);
  Tensor counts = torch::stable::new_zeros(prediction, {items, num_classes, kOverlapColumns}, ScalarType::Long);
  if (prediction.numel() == 0) return counts;

  const OverlapTask task{prediction.const_data_ptr(),
                         target.const_data_ptr(),
                         prediction.scalar_type(),
                         target.scalar_type(),
                         items,
                         prediction.numel() / items,
                         num_classes,
                         ignore_index.has_value(),
                         ignore_index.value_or(0)};
  const bool chunks = is_byte(task.prediction_dtype) && is_byte(task.target_dtype) && is_aligned(task.prediction) &&
                      is_aligned(task.target) && (items == 1 || task.voxels % kChunk == 0);
  const bool shared = num_classes * kOverlapColumns <= kMaxSharedCounts;
  const dim3 grid(static_cast<unsigned>(std::min(kMaxBlocks, ceil_div(task.voxels, kThreads * kChunk))),
                  static_cast<unsigned>(std::min(kMaxGridY, items)));
  const size_t shared_bytes = shared ? num_classes * kOverlapColumns * sizeof(Count) : 0;
  const auto kernel = chunks ? (shared ? overlap_kernel<true, true> : overlap_kernel<true, false>)
                             : (shared ? overlap_kernel<false, true> : overlap_kernel<false, false>);
  launch(kernel, grid, dim3(kThreads), shared_bytes, current_stream(prediction), task,
         static_cast<Count*>(counts.mutable_data_ptr()));
  return counts;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("overlap_counts", TORCH_BOX(&fastmed::overlap_counts));
}
