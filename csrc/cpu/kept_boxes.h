// The boxes that a greedy suppression has kept so far, and the question whether one of them suppresses another.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/box_columns.h"
#include "math/box.h"

namespace fastmed {

// True where one of the kLanes boxes from first on overlaps the candidate by more than the threshold.
template <class Real, int kAxes>
FASTMED_HD bool lanes_suppress(const BoxPointers<Real, kAxes>& kept, int64_t first, const Box<Real, kAxes>& candidate,
                               Real candidate_volume, Real threshold) {
  int possible = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    possible |=
        may_suppress(candidate, candidate_volume, kept.box(first + lane), kept.volumes[first + lane], threshold);
  }
  if (!possible) return false;
  int certain = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    certain |= box_overlap<false>(candidate, candidate_volume, kept.box(first + lane), kept.volumes[first + lane]) >
               threshold;
  }
  return certain != 0;
}

// One bit for every one of kLanes hulls that shares more than nothing with the candidate, and at least a volume.
template <class Real, int kAxes>
FASTMED_HD uint32_t lanes_share(const BoxPointers<Real, kAxes>& hulls, int64_t first,
                                const Box<Real, kAxes>& candidate, Real least) {
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Real shared = intersection(candidate, hulls.box(first + lane));
    bits |= (shared > Real(0)) & (shared >= least) ? uint32_t(1) << lane : uint32_t(0);
  }
  return bits;
}

// For every box its place along a Z-shaped curve through the centres, on a grid of 2^10 (2D: 2^15) steps an axis.
template <class Real, int kAxes>
std::vector<int32_t> places_along_curve(const std::vector<Box<Real, kAxes>>& boxes) {
  constexpr int kAxisBits = 30 / kAxes, kDigitBits = 10, kDigits = 1 << kDigitBits;
  const auto centre = [](const Box<Real, kAxes>& box, int axis) {
    return Real(0.5) * box.low[axis] + Real(0.5) * box.high[axis];
  };
  Box<Real, kAxes> hull;
  for (int axis = 0; axis < kAxes; ++axis) {
    hull.low[axis] = std::numeric_limits<Real>::infinity();
    hull.high[axis] = -hull.low[axis];
    for (const auto& box : boxes) {
      hull.low[axis] = smaller(hull.low[axis], centre(box, axis));
      hull.high[axis] = larger(hull.high[axis], centre(box, axis));
    }
  }
  struct Entry {
    uint32_t code;
    int32_t index;
  };
  std::vector<Entry> entries(boxes.size()), sorted(boxes.size());
  for (size_t i = 0; i < boxes.size(); ++i) {
    uint32_t code = 0;
    for (int axis = 0; axis < kAxes; ++axis) {
      const double extent = static_cast<double>(hull.high[axis]) - static_cast<double>(hull.low[axis]);
      const double offset = static_cast<double>(centre(boxes[i], axis)) - static_cast<double>(hull.low[axis]);
      const double steps = (1 << kAxisBits) - 1;
      const auto step = extent > 0 ? static_cast<uint32_t>(std::clamp(offset / extent * steps, 0.0, steps)) : 0u;
      for (int bit = 0; bit < kAxisBits; ++bit) code |= (step >> bit & 1) << (bit * kAxes + axis);
    }
    entries[i] = {code, static_cast<int32_t>(i)};
  }
  for (int shift = 0; shift < 30; shift += kDigitBits) {
    std::vector<int64_t> starts(kDigits + 1);
    for (const Entry& entry : entries) ++starts[(entry.code >> shift & (kDigits - 1)) + 1];
    for (int digit = 0; digit < kDigits; ++digit) starts[digit + 1] += starts[digit];
    for (const Entry& entry : entries) sorted[starts[entry.code >> shift & (kDigits - 1)]++] = entry;
    std::swap(entries, sorted);
  }
  std::vector<int32_t> places(boxes.size());
  for (size_t place = 0; place < entries.size(); ++place) places[entries[place].index] = static_cast<int32_t>(place);
  return places;
}

// Below it a volume's part might underflow.
template <class Real>
constexpr Real kLeastShare = Real(1e-6);

// A tree of kept boxes, kLanes to a node, neighbours in space side by side. Of use for thresholds of at least 0, where
// only boxes that meet suppress.
template <class Real, int kAxes>
class KeptTree {
 public:
  static constexpr int kMaxLevels = 9;  // kLanes^8 places are enough for 2^31 boxes

  struct Levels {
    std::array<BoxPointers<Real, kAxes>, kMaxLevels> pointers;
    int count;
  };

  // Has a place for each of the boxes, but holds none until it is entered.
  void clear(const std::vector<Box<Real, kAxes>>& boxes) {
    places_ = places_along_curve(boxes);
    levels_.resize(1);
    levels_[0].clear(static_cast<int64_t>(boxes.size()));
    while (levels_.back().room() > kLanes) levels_.emplace_back(levels_.back().room() / kLanes);
  }

  void enter(int64_t index, const Box<Real, kAxes>& box) {
    int64_t place = places_[index];
    levels_[0].set(place, box);
    for (size_t level = 1; level < levels_.size(); ++level) levels_[level].extend(place /= kLanes, box);
  }

  void fill(const std::vector<Box<Real, kAxes>>& boxes) {
    clear(boxes);
    for (size_t i = 0; i < boxes.size(); ++i) enter(static_cast<int64_t>(i), boxes[i]);
  }

  Levels levels() const {
    Levels result{};
    for (const auto& level : levels_) result.pointers[result.count++] = level.pointers();
    return result;
  }

 private:
  std::vector<int32_t> places_;
  std::vector<BoxColumns<Real, kAxes>> levels_;
};

// A suppressor shares at least the threshold's part of the candidate's volume, and with it every hull around it does,
// since rounding is monotonic; a percent is left for what the sum of the volumes loses.
template <class Real, int kAxes>
FASTMED_HD bool tree_suppresses(const typename KeptTree<Real, kAxes>::Levels& levels,
                                const Box<Real, kAxes>& candidate, Real threshold) {
  struct Node {
    int level;
    int64_t first;
  };
  Node open[KeptTree<Real, kAxes>::kMaxLevels * kLanes];
  int count = 0;
  if (levels.count > 0) open[count++] = {levels.count - 1, 0};
  const Real candidate_volume = volume(candidate);
  const Real least = threshold < kLeastShare<Real> ? Real(0) : Real(0.99) * threshold * candidate_volume;
  const Real most = Real(0.9) * candidate_volume;
  while (count > 0) {
    const Node node = open[--count];
    const auto& pointers = levels.pointers[node.level];
    if (node.level == 0) {
      if (lanes_suppress(pointers, node.first, candidate, candidate_volume, threshold)) return true;
      continue;
    }
    // Those that hold nearly all of the candidate go last onto the stack: there a suppressor is found soonest.
    const uint32_t share = lanes_share(pointers, node.first, candidate, least);
    const uint32_t hold = share & (share - 1) ? lanes_share(pointers, node.first, candidate, most) & share : 0;
    for (uint32_t bits : {share & ~hold, hold}) {
      for (; bits != 0; bits &= bits - 1) {
        open[count++] = {node.level - 1, (node.first + __builtin_ctz(bits)) * kLanes};
      }
    }
  }
  return false;
}

}  // namespace fastmed
