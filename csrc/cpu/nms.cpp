// nms_mask on the CPU: greedy within each segment; threads share out the segments, or the boxes of a long one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "box_checks.h"
#include "cpu/box_columns.h"
#include "cpu/kept_boxes.h"
#include "cpu/simd.h"
#include "math/box.h"

namespace fastmed {
namespace {

constexpr int64_t kBoxesPerTask = 2048;
constexpr int64_t kShortSegment = 256;  // up to here a list of kept boxes is searched as fast as a tree
constexpr int64_t kLongSegment = 4096;  // from here on all threads work on one segment
constexpr int64_t kBatch = 512;
constexpr int64_t kBatchBoxesPerTask = 64;

// What the call is about; positions count through all items in the order of suppression.
template <class Real>
struct NmsTask {
  const Real *boxes, *scores;
  const int64_t *order, *groups;
  int64_t items, count;
  Real threshold;
  bool* keep;

  FASTMED_HD int64_t index(int64_t position) const { return position / count * count + order[position]; }
};

// Whether the box takes part at all.
template <class Real, int kAxes>
FASTMED_HD bool takes_part(const Box<Real, kAxes>& box, Real score) {
  return is_finite(box) && score == score;
}

// A segment small enough for a list of what it keeps.
template <class Real, int kAxes>
struct SuppressShort {
  FASTMED_HD static void run(const NmsTask<Real>* task, int64_t begin, int64_t end, BoxColumns<Real, kAxes>* kept) {
    kept->clear(end - begin);
    const BoxPointers<Real, kAxes> pointers = kept->pointers();
    int64_t count = 0;
    for (int64_t position = begin; position < end; ++position) {
      const int64_t index = task->index(position);
      const auto box = load_box<Real, kAxes>(task->boxes + index * 2 * kAxes);
      const bool keep = takes_part(box, task->scores[index]) && !list_suppresses(pointers, count, box, task->threshold);
      task->keep[index] = keep;
      if (keep) kept->set(count++, box);
    }
  }
};

// Of the boxes [begin, end), those that survive what was kept before their batch.
template <class Real, int kAxes>
struct SurviveTree {
  FASTMED_HD static void run(const Box<Real, kAxes>* boxes, const typename KeptTree<Real, kAxes>::Levels* levels,
                             Real threshold, int64_t begin, int64_t end, bool* survives) {
    for (int64_t i = begin; i < end; ++i) survives[i] = !tree_suppresses<Real, kAxes>(*levels, boxes[i], threshold);
  }
};

// Of the survivors, those that survive each other; fills their indices and returns how many they are.
template <class Real, int kAxes>
struct SurviveBatch {
  FASTMED_HD static void run(const Box<Real, kAxes>* boxes, const bool* survives, Real threshold, int64_t begin,
                             int64_t end, BoxColumns<Real, kAxes>* kept, int64_t* indices, int64_t* count) {
    kept->clear(end - begin);
    const BoxPointers<Real, kAxes> pointers = kept->pointers();
    *count = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (!survives[i] || list_suppresses(pointers, *count, boxes[i], threshold)) continue;
      kept->set(*count, boxes[i]);
      indices[(*count)++] = i;
    }
  }
};

template <class Real, int kAxes>
void suppress_with_tree(const NmsTask<Real>& task, int64_t begin, int64_t end) {
  std::vector<Box<Real, kAxes>> boxes;
  std::vector<int64_t> indices;
  boxes.reserve(end - begin);
  indices.reserve(end - begin);
  for (int64_t position = begin; position < end; ++position) {
    const int64_t index = task.index(position);
    const auto box = load_box<Real, kAxes>(task.boxes + index * 2 * kAxes);
    task.keep[index] = false;
    if (!takes_part(box, task.scores[index])) continue;
    boxes.push_back(box);
    indices.push_back(index);
  }
  const auto count = static_cast<int64_t>(boxes.size());
  const std::vector<int32_t> places = places_along_curve(boxes);
  KeptTree<Real, kAxes> tree(count);
  const auto levels = tree.levels();
  BoxColumns<Real, kAxes> batch(kBatch);
  bool survives[kBatch];
  int64_t kept[kBatch];
  for (int64_t first = 0; first < count; first += kBatch) {
    const int64_t length = std::min(kBatch, count - first);
    const auto* const candidates = boxes.data() + first;
    torch::stable::parallel_for(0, length, kBatchBoxesPerTask, [&](int64_t from, int64_t to) {
      run<SurviveTree<Real, kAxes>>(candidates, &levels, task.threshold, from, to, survives);
    });
    int64_t kept_count = 0;
    run<SurviveBatch<Real, kAxes>>(candidates, survives, task.threshold, int64_t(0), length, &batch, kept, &kept_count);
    for (int64_t i = 0; i < kept_count; ++i) {
      tree.enter(places[first + kept[i]], candidates[kept[i]]);
      task.keep[indices[first + kept[i]]] = true;
    }
  }
}

template <class Real, int kAxes>
void suppress(const NmsTask<Real>& task, int64_t begin, int64_t end, BoxColumns<Real, kAxes>& kept) {
  // Below 0 boxes suppress that do not meet; the first then suppresses nearly all, and the list stays short.
  if (end - begin <= kShortSegment || task.threshold < Real(0)) {
    run<SuppressShort<Real, kAxes>>(&task, begin, end, &kept);
  } else {
    suppress_with_tree<Real, kAxes>(task, begin, end);
  }
}

// Where segments begin, that is items and groups within them, and last the end.
template <class Real>
std::vector<int64_t> segment_starts(const NmsTask<Real>& task) {
  std::vector<int64_t> starts;
  std::vector<int64_t> sorted(task.groups ? task.count : 0);
  for (int64_t item = 0; item < task.items; ++item) {
    const int64_t begin = item * task.count;
    starts.push_back(begin);
    if (!task.groups) continue;
    torch::stable::parallel_for(0, task.count, kBoxesPerTask, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) sorted[i] = task.groups[task.index(begin + i)];
    });
    for (int64_t i = 1; i < task.count; ++i) {
      if (sorted[i] != sorted[i - 1]) starts.push_back(begin + i);
    }
  }
  starts.push_back(task.items * task.count);
  return starts;
}

template <class Real, int kAxes>
void suppress_segments(const NmsTask<Real>& task) {
  const std::vector<int64_t> starts = segment_starts(task);
  torch::stable::parallel_for(0, task.items * task.count, kBoxesPerTask, [&](int64_t from, int64_t to) {
    BoxColumns<Real, kAxes> kept(kShortSegment);
    auto start = std::lower_bound(starts.begin(), starts.end(), from);
    for (; *start < to; ++start) {
      if (start[1] - start[0] < kLongSegment) suppress(task, start[0], start[1], kept);
    }
  });
  BoxColumns<Real, kAxes> kept(0);
  for (size_t segment = 0; segment + 1 < starts.size(); ++segment) {
    const int64_t begin = starts[segment], end = starts[segment + 1];
    if (end - begin >= kLongSegment) suppress(task, begin, end, kept);
  }
}

void check_order(const Tensor& order) {
  const int64_t* const values = static_cast<const int64_t*>(order.const_data_ptr());
  const int64_t count = order.size(1);
  int wrong = 0;
  for (int64_t i = 0; i < order.numel(); ++i) wrong |= static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(count);
  STD_TORCH_CHECK(!wrong, "order: expected positions from 0 to ", count - 1);
}

Tensor nms_mask(Tensor boxes, Tensor scores, Tensor order, std::optional<Tensor> groups, double iou_threshold) {
  check_nms_mask(boxes, scores, order, groups);
  check_order(order);
  Tensor keep = torch::stable::new_zeros(boxes, {boxes.size(0), boxes.size(1)}, ScalarType::Bool);
  for_box_type(boxes, "boxes", [&]<class Real, int kAxes>() {
    if (keep.numel() == 0) return;
    suppress_segments<Real, kAxes>({static_cast<const Real*>(boxes.const_data_ptr()),
                                    static_cast<const Real*>(scores.const_data_ptr()),
                                    static_cast<const int64_t*>(order.const_data_ptr()),
                                    groups ? static_cast<const int64_t*>(groups->const_data_ptr()) : nullptr,
                                    boxes.size(0), boxes.size(1), comparable_threshold<Real>(iou_threshold),
                                    static_cast<bool*>(keep.mutable_data_ptr())});
  });
  return keep;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("nms_mask", TORCH_BOX(&fastmed::nms_mask));
}
