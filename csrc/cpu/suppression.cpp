// nms_mask on the CPU: greedy within each segment; threads share out the segments, or the boxes of a long one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "box_checks.h"
#include "cpu/box_columns.h"
#include "cpu/kept_boxes.h"
#include "cpu/simd.h"
#include "math/box.h"

namespace fastmed {
namespace {

constexpr int64_t kBoxesPerTask = 2048;
constexpr int64_t kListLimit = 1024;    // up to here a list of kept boxes is searched faster than a tree
constexpr int64_t kLongSegment = 4096;  // from here on all threads work on one segment
constexpr int64_t kBatch = 4096;
constexpr int64_t kBatchBoxesPerTask = 256;
constexpr int64_t kPrefetch = 16;  // boxes are met in an order that no hardware foresees

// The boxes of one item; order has their indices in the order of suppression, groups stand in that order.
template <class Real, int kAxes>
struct NmsItem {
  const Real *boxes, *scores;
  const int64_t *order, *groups;
  bool* keep;
  int64_t count;

  FASTMED_HD Box<Real, kAxes> box(int64_t index) const { return load_box<Real, kAxes>(boxes + index * 2 * kAxes); }

  FASTMED_HD void prefetch(int64_t position) const {
    const int64_t index = order[position + kPrefetch < count ? position + kPrefetch : count - 1];
    __builtin_prefetch(boxes + index * 2 * kAxes);
    __builtin_prefetch(boxes + index * 2 * kAxes + 2 * kAxes - 1);
    __builtin_prefetch(scores + index);
    __builtin_prefetch(keep + index, 1);
  }
};

struct Segment {
  int64_t item, begin, end;
  int64_t length() const { return end - begin; }
};

template <class Real, int kAxes>
struct NmsTask {
  NmsItem<Real, kAxes> first;
  int64_t items;
  Real threshold;

  NmsItem<Real, kAxes> item(int64_t index) const {
    const int64_t offset = index * first.count;
    return {first.boxes + offset * 2 * kAxes, first.scores + offset, first.order + offset,
            first.groups ? first.groups + offset : nullptr, first.keep + offset, first.count};
  }
};

// Tests boxes [begin, end) against a list of the kept ones; stops where the list is full.
template <class Real, int kAxes>
struct SuppressWithList {
  struct Progress {
    int64_t position, kept;
    bool infinite;
  };

  FASTMED_HD static void run(const NmsItem<Real, kAxes>* item, Real threshold, int64_t end, int64_t limit,
                             BoxColumns<Real, kAxes>* list, Progress* progress) {
    const BoxPointers<Real, kAxes> pointers = list->pointers();
    for (; progress->position < end && progress->kept < limit; ++progress->position) {
      item->prefetch(progress->position);
      const int64_t index = item->order[progress->position];
      const auto box = item->box(index);
      const bool finite = is_finite(box);
      progress->infinite |= !finite && is_infinite(box);
      const bool known = finite && item->scores[index] == item->scores[index];
      const bool keep = known && !list_suppresses(pointers, progress->kept, box, threshold);
      item->keep[index] = keep;
      if (keep) list->set(progress->kept++, box);
    }
  }
};

// Of the boxes [begin, end), those that survive what was kept before their batch.
template <class Real, int kAxes>
struct SurviveEarlier {
  FASTMED_HD static void run(const Box<Real, kAxes>* boxes, const typename KeptTree<Real, kAxes>::Levels* levels,
                             Real threshold, int64_t begin, int64_t end, bool* survives) {
    for (int64_t i = begin; i < end; ++i) survives[i] = !tree_suppresses<Real, kAxes>(*levels, boxes[i], threshold);
  }
};

// Of those, the ones that survive each other; they enter the batch's tree.
template <class Real, int kAxes>
struct SurviveBatch {
  FASTMED_HD static void run(const Box<Real, kAxes>* boxes, const int32_t* places, Real threshold, int64_t length,
                             KeptTree<Real, kAxes>* tree, bool* survives) {
    const auto levels = tree->levels();
    for (int64_t i = 0; i < length; ++i) {
      survives[i] = survives[i] && !tree_suppresses<Real, kAxes>(levels, boxes[i], threshold);
      if (survives[i]) tree->enter(places[i], boxes[i]);
    }
  }
};

// The rank of each place among those of its batch.
void rank_places(const int32_t* places, int64_t length, std::vector<std::pair<int32_t, int32_t>>& sorted,
                 int32_t* ranks) {
  sorted.resize(length);
  for (int64_t i = 0; i < length; ++i) sorted[i] = {places[i], static_cast<int32_t>(i)};
  std::sort(sorted.begin(), sorted.end());
  for (int64_t rank = 0; rank < length; ++rank) ranks[sorted[rank].second] = static_cast<int32_t>(rank);
}

// Boxes [begin, end) against a tree, which starts with the boxes of a list. Returns whether a coordinate is infinite.
template <class Real, int kAxes>
bool suppress_with_tree(const NmsItem<Real, kAxes>& item, Real threshold, int64_t begin, int64_t end,
                        const BoxPointers<Real, kAxes>& list, int64_t list_length) {
  std::vector<Box<Real, kAxes>> boxes;
  std::vector<int64_t> indices(list_length);
  boxes.reserve(list_length + end - begin);
  indices.reserve(list_length + end - begin);
  for (int64_t i = 0; i < list_length; ++i) boxes.push_back(list.box(i));
  bool infinite = false;
  for (int64_t position = begin; position < end; ++position) {
    item.prefetch(position);
    const int64_t index = item.order[position];
    const auto box = item.box(index);
    item.keep[index] = false;
    if (is_finite(box)) {
      if (item.scores[index] != item.scores[index]) continue;
      boxes.push_back(box);
      indices.push_back(index);
    } else {
      infinite |= is_infinite(box);
    }
  }
  const auto count = static_cast<int64_t>(boxes.size());
  const std::vector<int32_t> places = places_along_curve(boxes);
  KeptTree<Real, kAxes> tree(count), batch_tree;
  const auto levels = tree.levels();
  std::vector<std::pair<int32_t, int32_t>> sorted;
  bool survives[kBatch];
  int32_t ranks[kBatch];
  for (int64_t i = 0; i < list_length; ++i) tree.enter(places[i], boxes[i]);
  for (int64_t first = list_length; first < count; first += kBatch) {
    const int64_t length = std::min(kBatch, count - first);
    const auto* const candidates = boxes.data() + first;
    torch::stable::parallel_for(0, length, kBatchBoxesPerTask, [&](int64_t from, int64_t to) {
      run<SurviveEarlier<Real, kAxes>>(candidates, &levels, threshold, from, to, survives);
    });
    rank_places(places.data() + first, length, sorted, ranks);
    batch_tree.clear(length);
    run<SurviveBatch<Real, kAxes>>(candidates, ranks, threshold, length, &batch_tree, survives);
    for (int64_t i = 0; i < length; ++i) {
      if (!survives[i]) continue;
      tree.enter(places[first + i], candidates[i]);
      item.keep[indices[first + i]] = true;
    }
  }
  return infinite;
}

// Returns whether a coordinate is infinite. The list is room to work in.
template <class Real, int kAxes>
bool suppress(const NmsTask<Real, kAxes>& task, const Segment& segment, BoxColumns<Real, kAxes>& list) {
  const auto item = task.item(segment.item);
  // Below 0 boxes suppress that do not meet; the first then suppresses nearly all, and the list stays short.
  const int64_t limit = task.threshold < Real(0) ? segment.length() : std::min(segment.length(), kListLimit);
  list.clear(limit);
  typename SuppressWithList<Real, kAxes>::Progress progress{segment.begin, 0, false};
  run<SuppressWithList<Real, kAxes>>(&item, task.threshold, segment.end, limit, &list, &progress);
  if (progress.position == segment.end) return progress.infinite;
  return progress.infinite | suppress_with_tree<Real, kAxes>(item, task.threshold, progress.position, segment.end,
                                                             list.pointers(), progress.kept);
}

// Items, and within them runs of one group.
template <class Real, int kAxes>
std::vector<Segment> segments_of(const NmsTask<Real, kAxes>& task) {
  const int64_t count = task.first.count;
  std::vector<Segment> segments;
  for (int64_t index = 0; index < task.items; ++index) {
    const auto item = task.item(index);
    segments.push_back({index, 0, count});
    if (!item.groups) continue;
    for (int64_t i = 1; i < count; ++i) {
      if (item.groups[i] == item.groups[i - 1]) continue;
      segments.back().end = i;
      segments.push_back({index, i, count});
    }
  }
  return segments;
}

template <class Real, int kAxes>
bool suppress_segments(const NmsTask<Real, kAxes>& task) {
  const int64_t count = task.first.count;
  const std::vector<Segment> segments = segments_of(task);
  std::atomic<bool> infinite = false;
  // Each task takes the segments that begin in its range of boxes.
  torch::stable::parallel_for(0, task.items * count, kBoxesPerTask, [&](int64_t from, int64_t to) {
    BoxColumns<Real, kAxes> list(kListLimit);
    const auto starts_before = [&](const Segment& segment, int64_t position) {
      return segment.item * count + segment.begin < position;
    };
    auto segment = std::lower_bound(segments.begin(), segments.end(), from, starts_before);
    for (; segment != segments.end() && starts_before(*segment, to); ++segment) {
      if (segment->length() < kLongSegment && suppress(task, *segment, list)) infinite = true;
    }
  });
  BoxColumns<Real, kAxes> list(kListLimit);
  for (const Segment& segment : segments) {
    if (segment.length() >= kLongSegment && suppress(task, segment, list)) infinite = true;
  }
  return infinite;
}

void check_order(const Tensor& order, int64_t count) {
  const int64_t* const values = static_cast<const int64_t*>(order.const_data_ptr());
  int wrong = 0;
  for (int64_t i = 0; i < order.numel(); ++i) wrong |= static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(count);
  STD_TORCH_CHECK(!wrong, "order: expected indices from 0 to ", count - 1);
}

std::tuple<Tensor, Tensor> nms_mask(Tensor boxes, Tensor scores, Tensor order, std::optional<Tensor> groups,
                                    double iou_threshold) {
  const BoxRows rows = check_nms_mask(boxes, scores, order, groups);
  check_order(order, rows.count);
  Tensor keep = torch::stable::new_zeros(scores, scores.sizes(), ScalarType::Bool);
  Tensor counts = torch::stable::new_zeros(scores, {kNmsCounts}, ScalarType::Long);
  if (keep.numel() == 0) return {keep, counts};
  bool* const kept = static_cast<bool*>(keep.mutable_data_ptr());
  int64_t* const count = static_cast<int64_t*>(counts.mutable_data_ptr());
  for_box_type(boxes, "boxes", [&]<class Real, int kAxes>() {
    const NmsItem<Real, kAxes> first{static_cast<const Real*>(boxes.const_data_ptr()),
                                     static_cast<const Real*>(scores.const_data_ptr()),
                                     static_cast<const int64_t*>(order.const_data_ptr()),
                                     groups ? static_cast<const int64_t*>(groups->const_data_ptr()) : nullptr, kept,
                                     rows.count};
    count[kInfinite] = suppress_segments<Real, kAxes>(
        {first, rows.items, comparable_threshold<Real>(iou_threshold)});
  });
  count[kKept] = std::count(kept, kept + keep.numel(), true);
  return {keep, counts};
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("nms_mask", TORCH_BOX(&fastmed::nms_mask));
}
