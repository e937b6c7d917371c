// nms on the CPU: ranks, then suppresses within each group; threads share out the groups, or the boxes of a large one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "box_checks.h"
#include "cpu/ranking.h"
#include "cpu/segments.h"
#include "math/box.h"

namespace fastmed {
namespace {

constexpr int64_t kBoxesPerTask = 2048;
constexpr int64_t kLongSegment = 4096;  // from here on all threads work on one segment

// Each task takes the groups that begin in its range of boxes.
template <class Real, int kAxes>
bool suppress_groups(const NmsItem<Real, kAxes>& item) {
  std::atomic<bool> infinite = false;
  std::mutex lock;
  std::vector<Segment> long_segments;
  const auto starts = [&](int64_t i) { return i == 0 || item.order[i].key != item.order[i - 1].key; };
  torch::stable::parallel_for(0, item.count, kBoxesPerTask, [&](int64_t from, int64_t to) {
    OpenBoxes<Real, kAxes> boxes;
    while (from < to && !starts(from)) ++from;
    while (from < to) {
      Segment segment{from, from + 1};
      while (segment.end < item.count && !starts(segment.end)) ++segment.end;
      from = segment.end;
      if (segment.length() < kLongSegment) {
        if (suppress(item, segment, boxes)) infinite = true;
      } else {
        const std::lock_guard guard(lock);
        long_segments.push_back(segment);
      }
    }
  });
  OpenBoxes<Real, kAxes> boxes;
  for (const Segment& segment : long_segments) {
    if (suppress(item, segment, boxes)) infinite = true;
  }
  return infinite;
}

// Marks in keep what is kept of one item.
template <class Real, int kAxes, class Score>
bool suppress_item(const Real* boxes, const Score* scores, const int64_t* groups, int64_t count, Real threshold,
                   bool* keep, Buffer<int32_t>* by_score) {
  RankedRow<uint32_t> row = rank_by_score(scores, count);
  int64_t known = count;
  bool infinite = false;
  NmsItem<Real, kAxes> item{boxes, row.entries.get(), count, threshold, keep};
  for (; known > 0; --known) {
    const Score score = scores[row.entries[known - 1].index];
    if (score == score) break;
    infinite |= is_infinite(item.box(known - 1));
  }
  if (by_score) {
    *by_score = new_buffer<int32_t>(count);
    Parts(count).each([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*by_score)[i] = row.entries[i].index;
    });
  }
  if (known == 0) return infinite;
  item.count = row.count = known;
  if (groups) gather_groups(row, groups);
  item.order = row.entries.get();
  if (groups) return infinite | suppress_groups(item);
  OpenBoxes<Real, kAxes> room;
  return infinite | suppress(item, {0, known}, room);
}

// Returns whether a coordinate is infinite.
bool mark_kept(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups, double iou_threshold,
               const BoxRows& rows, bool* keep, Buffer<int32_t>* by_score) {
  std::atomic<bool> infinite = false;
  for_box_type(boxes, "boxes", [&]<class Real, int kAxes>() {
    const auto threshold = comparable_threshold<Real>(iou_threshold);
    const auto* const corners = static_cast<const Real*>(boxes.const_data_ptr());
    const int64_t* const numbers = groups ? static_cast<const int64_t*>(groups->const_data_ptr()) : nullptr;
    const auto mark_items = [&](const auto* values) {
      const auto mark_item = [&](int64_t index) {
        const int64_t offset = index * rows.count;
        const bool found = suppress_item<Real, kAxes>(corners + offset * 2 * kAxes, values + offset,
                                                      numbers ? numbers + offset : nullptr, rows.count, threshold,
                                                      keep + offset, by_score);
        if (found) infinite = true;
      };
      if (rows.items == 1) return mark_item(0);
      torch::stable::parallel_for(0, rows.items, 1, [&](int64_t from, int64_t to) {
        for (int64_t index = from; index < to; ++index) mark_item(index);
      });
    };
    if (scores.scalar_type() == ScalarType::Double) {
      mark_items(static_cast<const double*>(scores.const_data_ptr()));
    } else {
      mark_items(static_cast<const float*>(scores.const_data_ptr()));
    }
  });
  return infinite;
}

Tensor nms_mask(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold) {
  const BoxRows rows = check_nms(boxes, scores, groups);
  Tensor keep = torch::stable::new_zeros(scores, scores.sizes(), ScalarType::Bool);
  if (keep.numel() == 0) return keep;
  mark_kept(boxes, scores, groups, iou_threshold, rows, static_cast<bool*>(keep.mutable_data_ptr()), nullptr);
  return keep;
}

std::tuple<Tensor, Tensor> nms(Tensor boxes, Tensor scores, std::optional<Tensor> groups, double iou_threshold) {
  const BoxRows rows = check_nms(boxes, scores, groups);
  STD_TORCH_CHECK(rows.items == 1 && boxes.dim() == 2, "boxes: expected [N, 4] or [N, 6]");
  Tensor infinite = torch::stable::new_zeros(scores, {}, ScalarType::Bool);
  if (rows.count == 0) return {torch::stable::new_empty(scores, {0}, ScalarType::Long), infinite};
  std::vector<uint8_t> marks(rows.count);
  bool* const keep = reinterpret_cast<bool*>(marks.data());
  Buffer<int32_t> by_score;
  *static_cast<bool*>(infinite.mutable_data_ptr()) =
      mark_kept(boxes, scores, groups, iou_threshold, rows, keep, &by_score);

  const Parts parts(rows.count);
  std::vector<int64_t> starts(parts.parts() + 1);
  parts.each([&](int64_t part, int64_t begin, int64_t end) {
    int64_t kept = 0;
    for (int64_t i = begin; i < end; ++i) kept += keep[by_score[i]];
    starts[part + 1] = kept;
  });
  for (int64_t part = 0; part < parts.parts(); ++part) starts[part + 1] += starts[part];
  Tensor result = torch::stable::new_empty(scores, {starts.back()}, ScalarType::Long);
  int64_t* const indices = static_cast<int64_t*>(result.mutable_data_ptr());
  parts.each([&](int64_t part, int64_t begin, int64_t end) {
    int64_t place = starts[part];
    for (int64_t i = begin; i < end && place < starts[part + 1]; ++i) {
      indices[place] = by_score[i];  // one that is not kept is overwritten: no branch to foresee
      place += keep[by_score[i]];
    }
  });
  return {result, infinite};
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("nms", TORCH_BOX(&fastmed::nms));
  m.impl("nms_mask", TORCH_BOX(&fastmed::nms_mask));
}
