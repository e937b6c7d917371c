// nms_sorted on CUDA: tiles of boxes settle their own conflicts, one after the other, then sweep all later boxes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "box_checks.h"
#include "cuda/launch.cuh"
#include "math/box.h"

namespace fastmed {
namespace {

using Count = unsigned long long;

constexpr int kThreads = 256;
constexpr int kTile = 512;  // boxes; their conflicts fit shared memory
constexpr int kWarp = 32;
constexpr int kWords = kTile / 32;
constexpr int kPaddedWords = kWords + 1;  // rows of conflicts in different banks
constexpr int64_t kMaxGatherBlocks = 4096;

// Boxes in the order of suppression, one column per corner; positions count through all items.
template <class Real, int kAxes>
struct SortedBoxes {
  Real* corners;
  const int64_t* groups;  // null without
  bool* open;             // neither void nor suppressed so far
  int64_t items, count;

  __device__ __forceinline__ Box<Real, kAxes> box(int64_t position) const {
    Box<Real, kAxes> result;
    for (int axis = 0; axis < kAxes; ++axis) {
      result.low[axis] = corners[axis * items * count + position];
      result.high[axis] = corners[(kAxes + axis) * items * count + position];
    }
    return result;
  }

  __device__ __forceinline__ bool same_group(int64_t position, int64_t other) const {
    return groups == nullptr || groups[position] == groups[other];
  }
};

struct NmsInputs {
  const void *boxes, *scores;
  const int64_t* order;
};

struct NmsOutputs {
  bool* keep;
  Count* counts;
};

// An index outside the item makes a void box, as NaN does.
template <class Real, int kAxes>
__global__ void gather_kernel(NmsInputs inputs, SortedBoxes<Real, kAxes> sorted, Count* counts) {
  const int64_t total = sorted.items * sorted.count, step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t position = start; position < total; position += step) {
    const int64_t index = inputs.order[position];
    const bool inside = index >= 0 && index < sorted.count;
    const int64_t source = position / sorted.count * sorted.count + (inside ? index : 0);
    const auto box = load_box<Real, kAxes>(static_cast<const Real*>(inputs.boxes) + source * 2 * kAxes);
    const Real score = static_cast<const Real*>(inputs.scores)[source];
    for (int axis = 0; axis < kAxes; ++axis) {
      sorted.corners[axis * total + position] = box.low[axis];
      sorted.corners[(kAxes + axis) * total + position] = box.high[axis];
    }
    sorted.open[position] = inside && is_finite(box) && score == score;
    if (is_infinite(box)) atomicOr(counts + kInfinite, Count(1));
  }
}

// Boxes of a tile in shared memory.
template <class Real, int kAxes>
struct TileBoxes {
  Real corners[2 * kAxes][kTile];
  Real volumes[kTile];

  __device__ __forceinline__ void set(int place, const Box<Real, kAxes>& box) {
    for (int axis = 0; axis < kAxes; ++axis) {
      corners[axis][place] = box.low[axis];
      corners[kAxes + axis][place] = box.high[axis];
    }
    volumes[place] = volume(box);
  }

  __device__ __forceinline__ Box<Real, kAxes> box(int place) const {
    Box<Real, kAxes> result;
    for (int axis = 0; axis < kAxes; ++axis) {
      result.low[axis] = corners[axis][place];
      result.high[axis] = corners[kAxes + axis][place];
    }
    return result;
  }
};

// The later boxes of its tile that a box would suppress: kWords words of bits for each of the tile's kTile rows.
template <class Real, int kAxes>
__global__ void __launch_bounds__(kThreads)
    conflict_kernel(SortedBoxes<Real, kAxes> sorted, int64_t tiles, Real threshold, uint32_t* __restrict__ conflicts) {
  __shared__ TileBoxes<Real, kAxes> boxes;
  const int64_t tile = blockIdx.x % tiles;
  const int64_t first = blockIdx.x / tiles * sorted.count + tile * kTile;
  const auto count = static_cast<int>(min(static_cast<int64_t>(kTile), sorted.count - tile * kTile));
  for (int i = threadIdx.x; i < count; i += kThreads) boxes.set(i, sorted.box(first + i));
  __syncthreads();

  // A row from the front and one from the back: all threads see about as many pairs.
  for (int turn = 0; turn < kTile / kThreads; ++turn) {
    const int row = turn % 2 == 0 ? turn * kThreads + threadIdx.x : (turn + 1) * kThreads - 1 - threadIdx.x;
    uint32_t* const words = conflicts + (static_cast<int64_t>(blockIdx.x) * kTile + row) * kWords;
    if (row >= count || !sorted.open[first + row]) {
      for (int word = 0; word < kWords; ++word) words[word] = 0;
      continue;
    }
    const auto own = boxes.box(row);
    const Real own_volume = boxes.volumes[row];
    for (int word = 0; word < kWords; ++word) {
      uint32_t bits = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const int other = word * 32 + bit;
        if (other <= row || other >= count || !sorted.same_group(first + row, first + other)) continue;
        if (suppresses(own, own_volume, boxes.box(other), boxes.volumes[other], threshold)) bits |= 1u << bit;
      }
      words[word] = bits;
    }
  }
}

// One block per item: the boxes of a tile that stay, given those that earlier tiles have left open.
template <class Real, int kAxes>
__global__ void __launch_bounds__(kThreads)
    settle_kernel(SortedBoxes<Real, kAxes> sorted, const int64_t* __restrict__ order, int64_t tile, int64_t tiles,
                  const uint32_t* __restrict__ conflicts, NmsOutputs outputs) {
  __shared__ uint32_t rows[kTile * kPaddedWords];
  __shared__ uint32_t open_words[kWords], kept_words[kWords];
  const int64_t item = blockIdx.x;
  const int64_t first = item * sorted.count + tile * kTile;
  const auto count = static_cast<int>(min(static_cast<int64_t>(kTile), sorted.count - tile * kTile));

  const uint32_t* const tile_conflicts = conflicts + (item * tiles + tile) * kTile * kWords;
  for (int i = threadIdx.x; i < kTile * kWords; i += kThreads) {
    rows[i / kWords * kPaddedWords + i % kWords] = tile_conflicts[i];
  }
  for (int i = threadIdx.x; i < kTile; i += kThreads) {
    const uint32_t bits = __ballot_sync(0xffffffffu, i < count && sorted.open[first + i]);
    if (i % 32 == 0) open_words[i / 32] = bits;
  }
  __syncthreads();

  if (threadIdx.x < kWarp) {
    const int lane = threadIdx.x;
    uint32_t open = lane < kWords ? open_words[lane] : 0u;
    for (int word = 0; word < kWords; ++word) {
      // Within the word one box after the other; the kept ones then clear the later words all at once.
      const uint32_t own = rows[(word * 32 + lane) * kPaddedWords + word];
      uint32_t candidates = __shfl_sync(0xffffffffu, open, word), kept = 0;
      while (candidates != 0) {
        const int bit = __ffs(static_cast<int>(candidates)) - 1;
        kept |= 1u << bit;
        candidates &= ~__shfl_sync(0xffffffffu, own, bit) & ~(1u << bit);
      }
      for (uint32_t rest = kept; lane < kWords && rest != 0; rest &= rest - 1) {
        open &= ~rows[(word * 32 + __ffs(static_cast<int>(rest)) - 1) * kPaddedWords + lane];
      }
      if (lane == 0) {
        kept_words[word] = kept;
        if (kept != 0) atomicAdd(outputs.counts + kKept, static_cast<Count>(__popc(kept)));
      }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < count; i += kThreads) {
    const bool kept = (kept_words[i / 32] >> (i % 32) & 1u) != 0;
    sorted.open[first + i] = kept;
    if (kept) outputs.keep[item * sorted.count + order[first + i]] = true;
  }
}

// Closes the boxes after a settled tile that it suppresses. Only the group at the tile's end reaches beyond it.
template <class Real, int kAxes>
__global__ void __launch_bounds__(kThreads)
    sweep_kernel(SortedBoxes<Real, kAxes> sorted, int64_t tile, Real threshold) {
  __shared__ TileBoxes<Real, kAxes> kept;
  __shared__ int kept_count;
  for (int64_t item = blockIdx.y; item < sorted.items; item += gridDim.y) {
    const int64_t begin = item * sorted.count + tile * kTile, last = begin + kTile - 1;
    const int64_t block_first = last + 1 + static_cast<int64_t>(blockIdx.x) * kThreads;
    if (!sorted.same_group(last, block_first)) continue;
    if (threadIdx.x == 0) kept_count = 0;
    __syncthreads();
    for (int64_t position = begin + threadIdx.x; position <= last; position += kThreads) {
      if (sorted.open[position] && sorted.same_group(position, last)) {
        kept.set(atomicAdd(&kept_count, 1), sorted.box(position));
      }
    }
    __syncthreads();
    const int64_t position = block_first + threadIdx.x;
    if (position < (item + 1) * sorted.count && sorted.open[position] && sorted.same_group(position, last)) {
      const auto box = sorted.box(position);
      const Real box_volume = volume(box);
      bool open = true;
      for (int i = 0; open && i < kept_count; ++i) {
        open = !suppresses(kept.box(i), kept.volumes[i], box, box_volume, threshold);
      }
      if (!open) sorted.open[position] = false;
    }
    __syncthreads();
  }
}

template <class Real, int kAxes>
void launch_nms(const NmsInputs& inputs, const SortedBoxes<Real, kAxes>& sorted, Real threshold, cudaStream_t stream,
                uint32_t* conflicts, const NmsOutputs& outputs) {
  const int64_t total = sorted.items * sorted.count, tiles = ceil_div(sorted.count, kTile);
  STD_TORCH_CHECK(sorted.items * tiles <= kMaxGridX, "boxes: too many for one launch");
  const auto gather_blocks = static_cast<unsigned>(std::min(kMaxGatherBlocks, ceil_div(total, kThreads)));
  launch(gather_kernel<Real, kAxes>, gather_blocks, kThreads, 0, stream, inputs, sorted, outputs.counts);
  launch(conflict_kernel<Real, kAxes>, static_cast<unsigned>(sorted.items * tiles), kThreads, 0, stream, sorted, tiles,
         threshold, conflicts);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    launch(settle_kernel<Real, kAxes>, static_cast<unsigned>(sorted.items), kThreads, 0, stream, sorted, inputs.order,
           tile, tiles, conflicts, outputs);
    const int64_t later = sorted.count - (tile + 1) * kTile;
    if (later <= 0) break;
    const dim3 grid(static_cast<unsigned>(ceil_div(later, kThreads)),
                    static_cast<unsigned>(std::min(kMaxGridY, sorted.items)));
    launch(sweep_kernel<Real, kAxes>, grid, kThreads, 0, stream, sorted, tile, threshold);
  }
}

std::tuple<Tensor, Tensor> nms_sorted(Tensor boxes, Tensor scores, Tensor order, std::optional<Tensor> groups,
                                      double iou_threshold) {
  const BoxRows rows = check_nms_sorted(boxes, scores, order, groups);
  const DeviceGuard guard(boxes.get_device_index());
  Tensor keep = torch::stable::new_zeros(scores, scores.sizes(), ScalarType::Bool);
  Tensor counts = torch::stable::new_zeros(scores, {kNmsCounts}, ScalarType::Long);
  if (keep.numel() == 0) return {keep, counts};
  const int64_t total = rows.items * rows.count, tiles = ceil_div(rows.count, kTile);
  Tensor corners = torch::stable::new_empty(boxes, {boxes.numel()});
  Tensor open = torch::stable::new_empty(boxes, {total}, ScalarType::Bool);
  Tensor conflicts = torch::stable::new_empty(boxes, {rows.items * tiles * kTile * kWords}, ScalarType::Int);

  const NmsInputs inputs{boxes.const_data_ptr(), scores.const_data_ptr(),
                         static_cast<const int64_t*>(order.const_data_ptr())};
  const NmsOutputs outputs{static_cast<bool*>(keep.mutable_data_ptr()), static_cast<Count*>(counts.mutable_data_ptr())};
  for_box_type(boxes, "boxes", [&]<class Real, int kAxes>() {
    const SortedBoxes<Real, kAxes> sorted{
        static_cast<Real*>(corners.mutable_data_ptr()),
        groups ? static_cast<const int64_t*>(groups->const_data_ptr()) : nullptr,
        static_cast<bool*>(open.mutable_data_ptr()), rows.items, rows.count};
    launch_nms<Real, kAxes>(inputs, sorted, comparable_threshold<Real>(iou_threshold), current_stream(boxes),
                            static_cast<uint32_t*>(conflicts.mutable_data_ptr()), outputs);
  });
  return {keep, counts};
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CUDA, m) {
  m.impl("nms_sorted", TORCH_BOX(&fastmed::nms_sorted));
}
