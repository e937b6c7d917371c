// Greedy suppression among the boxes of one segment: short ones box by box, long ones with trees of what is kept.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/box_columns.h"
#include "cpu/kept_boxes.h"
#include "cpu/ranking.h"
#include "cpu/simd.h"
#include "math/box.h"

namespace fastmed {

constexpr int64_t kShortSegment = 1024;  // up to here a tree costs more than it saves
constexpr int64_t kFirstBatch = 512;
constexpr int64_t kBatchPerKept = 3;  // longer ones leave more to settle among themselves, shorter ones grow more trees
constexpr int64_t kBatchBoxesPerTask = 128;
constexpr int64_t kPrefetch = 16;  // boxes are met in an order that no hardware foresees

// The boxes of one item, and their indices in the order of suppression.
template <class Real, int kAxes>
struct NmsItem {
  const Real* boxes;
  const Ranked<uint32_t>* order;
  int64_t count;
  Real threshold;
  bool* keep;

  FASTMED_HD Box<Real, kAxes> box(int64_t position) const {
    return load_box<Real, kAxes>(boxes + order[position].index * int64_t{2 * kAxes});
  }

  FASTMED_HD void prefetch(int64_t position) const {
    if (position >= count) return;
    const Real* const corners = boxes + order[position].index * int64_t{2 * kAxes};
    __builtin_prefetch(corners);
    __builtin_prefetch(corners + 2 * kAxes - 1);
  }
};

struct Segment {
  int64_t begin, end;
  int64_t length() const { return end - begin; }
};

// The boxes of a short segment as columns, and which of them are still open.
template <class Real, int kAxes>
struct OpenBoxes {
  BoxColumns<Real, kAxes> columns;
  std::vector<int32_t> open;

  void clear(int64_t count) {
    columns.clear(count);
    open.assign(columns.room(), 0);
  }
};

// Each box that is still open is kept, and closes all later ones that it suppresses.
template <class Real, int kAxes>
struct SuppressLater {
  FASTMED_HD static void run(const NmsItem<Real, kAxes>* item, int64_t begin, int64_t length,
                             OpenBoxes<Real, kAxes>* boxes, bool* infinite) {
    int32_t* const open = boxes->open.data();
    for (int64_t i = 0; i < length; ++i) {
      item->prefetch(begin + i + kPrefetch);
      const auto box = item->box(begin + i);
      if (is_finite(box)) {
        boxes->columns.set(i, box);
        open[i] = 1;
      } else {
        *infinite |= is_infinite(box);
      }
    }
    const BoxPointers<Real, kAxes> pointers = boxes->columns.pointers();
    const Real threshold = item->threshold;
    for (int64_t i = 0; i < length; ++i) {
      if (!open[i]) continue;
      item->keep[item->order[begin + i].index] = true;
      const auto box = pointers.box(i);
      const Real box_volume = pointers.volumes[i];
      for (int64_t first = i / kLanes * kLanes; first < length; first += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const Real iou =
              box_overlap<false>(box, box_volume, pointers.box(first + lane), pointers.volumes[first + lane]);
          open[first + lane] &= iou > threshold ? 0 : 1;
        }
      }
    }
  }
};

// Of boxes [begin, end) of a batch, those that survive what was kept before it.
template <class Real, int kAxes>
struct SurviveEarlier {
  FASTMED_HD static void run(const NmsItem<Real, kAxes>* item, const typename KeptTree<Real, kAxes>::Levels* levels,
                             int64_t first, int64_t begin, int64_t end, bool* survives, bool* infinite) {
    for (int64_t i = begin; i < end; ++i) {
      item->prefetch(first + i + kPrefetch);
      const auto box = item->box(first + i);
      const bool finite = is_finite(box);
      *infinite |= !finite && is_infinite(box);
      survives[i] = finite && !tree_suppresses<Real, kAxes>(*levels, box, item->threshold);
    }
  }
};

// Of those, the ones that survive each other; they enter the batch's tree.
template <class Real, int kAxes>
struct SurviveBatch {
  FASTMED_HD static void run(const Box<Real, kAxes>* boxes, Real threshold, int64_t count,
                             KeptTree<Real, kAxes>* tree, bool* survives) {
    const auto levels = tree->levels();
    for (int64_t i = 0; i < count; ++i) {
      survives[i] = !tree_suppresses<Real, kAxes>(levels, boxes[i], threshold);
      if (survives[i]) tree->enter(i, boxes[i]);
    }
  }
};

// Batch by batch: all threads test a batch against a tree of what was kept before, one settles what survives.
template <class Real, int kAxes>
bool suppress_with_trees(const NmsItem<Real, kAxes>& item, const Segment& segment) {
  std::vector<Box<Real, kAxes>> kept, survivors;
  std::vector<int32_t> indices;
  Buffer<bool> survives;
  KeptTree<Real, kAxes> tree, batch_tree;
  std::atomic<bool> infinite = false;
  int64_t length = 0;
  for (int64_t first = segment.begin; first < segment.end; first += length) {
    length = std::max(kFirstBatch, kBatchPerKept * static_cast<int64_t>(kept.size()));
    length = std::min(length, segment.end - first);
    const auto levels = tree.levels();
    survives = new_buffer<bool>(length);
    torch::stable::parallel_for(0, length, kBatchBoxesPerTask, [&](int64_t from, int64_t to) {
      bool found = false;
      run<SurviveEarlier<Real, kAxes>>(&item, &levels, first, from, to, survives.get(), &found);
      if (found) infinite = true;
    });
    survivors.clear();
    indices.clear();
    for (int64_t i = 0; i < length; ++i) {
      if (!survives[i]) continue;
      survivors.push_back(item.box(first + i));
      indices.push_back(item.order[first + i].index);
    }
    const auto count = static_cast<int64_t>(survivors.size());
    if (count == 0) continue;
    batch_tree.clear(survivors);
    run<SurviveBatch<Real, kAxes>>(survivors.data(), item.threshold, count, &batch_tree, survives.get());
    for (int64_t i = 0; i < count; ++i) {
      if (!survives[i]) continue;
      item.keep[indices[i]] = true;
      kept.push_back(survivors[i]);
    }
    if (first + length < segment.end) tree.fill(kept);
  }
  return infinite;
}

// Returns whether a coordinate is infinite. The open boxes are room to work in.
template <class Real, int kAxes>
bool suppress(const NmsItem<Real, kAxes>& item, const Segment& segment, OpenBoxes<Real, kAxes>& boxes) {
  // Below 0 boxes suppress that do not meet; the first then suppresses nearly all.
  const bool one_by_one = item.threshold < Real(0) || segment.length() <= kShortSegment;
  if (!one_by_one) return suppress_with_trees(item, segment);
  boxes.clear(segment.length());
  bool infinite = false;
  run<SuppressLater<Real, kAxes>>(&item, segment.begin, segment.length(), &boxes, &infinite);
  return infinite;
}

}  // namespace fastmed
