// box_iou and its backward on the CPU: one box of the first set against lanes of the second.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "box_checks.h"
#include "cpu/box_columns.h"
#include "cpu/results.h"
#include "cpu/simd.h"
#include "math/box.h"

namespace fastmed {
namespace {

constexpr int64_t kPairsPerTask = 1 << 14;

template <class Real, int kAxes>
struct BoxWithVolume {
  Box<Real, kAxes> box;
  Real volume;
};

// Rows [begin, end) of one item's overlaps. The last lanes of a row are written beyond its end, where the next rows
// follow, and at the very end one by one.
template <class Real, int kAxes, bool kGeneralized>
struct OverlapRows {
  using Own = BoxWithVolume<Real, kAxes>;
  using Others = BoxPointers<Real, kAxes>;

  FASTMED_HD static void run(const Real* boxes1, Others others, int64_t count2, int64_t begin, int64_t end,
                             Real* out) {
    Real* const stop = out + end * count2;
    for (int64_t row = begin; row < end; ++row) {
      const auto box = load_box<Real, kAxes>(boxes1 + row * 2 * kAxes);
      const Own own{box, volume(box)};
      for (int64_t start = 0; start < count2; start += kLanes) {
        Real* const line = out + row * count2 + start;
        stop - line >= kLanes ? fill_lanes(own, others, start, line) : fill_few(own, others, start, count2, line);
      }
    }
  }

  FASTMED_HD static void fill_lanes(const Own& own, const Others& others, int64_t start, Real* __restrict line) {
    for (int lane = 0; lane < kLanes; ++lane) {
      line[lane] = box_overlap<kGeneralized>(own.box, own.volume, others.box(start + lane), others.volumes[start + lane]);
    }
  }

  FASTMED_HD static void fill_few(const Own& own, const Others& others, int64_t start, int64_t count2, Real* line) {
    Real few[kLanes];
    fill_lanes(own, others, start, few);
    for (int64_t lane = 0; lane < kLanes && start + lane < count2; ++lane) line[lane] = few[lane];
  }
};

template <class Real, int kAxes>
BoxColumns<Real, kAxes> columns_of(const Real* boxes, int64_t count) {
  BoxColumns<Real, kAxes> columns(count);
  for (int64_t i = 0; i < count; ++i) columns.set(i, load_box<Real, kAxes>(boxes + i * 2 * kAxes));
  return columns;
}

// Rows of all items in tasks of similar size; body(item, begin, end) sees rows of one item.
template <class Body>
void for_rows(int64_t items, int64_t rows, int64_t row_length, const Body& body) {
  const int64_t rows_per_task = std::max<int64_t>(1, kPairsPerTask / std::max<int64_t>(1, row_length));
  torch::stable::parallel_for(0, items * rows, rows_per_task, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t item = begin / rows;
      const int64_t stop = std::min(end, (item + 1) * rows);
      body(item, begin - item * rows, stop - item * rows);
      begin = stop;
    }
  });
}

Tensor box_iou(Tensor boxes1, Tensor boxes2, bool generalized) {
  const BoxSets sets = check_box_sets(boxes1, boxes2);
  Tensor out = new_result(boxes1, overlap_shape(boxes1, boxes2));
  for_box_type(boxes1, "boxes1", [&]<class Real, int kAxes>() {
    if (out.numel() == 0) return;
    const Real* const first = static_cast<const Real*>(boxes1.const_data_ptr());
    const Real* const second = static_cast<const Real*>(boxes2.const_data_ptr());
    Real* const overlaps = static_cast<Real*>(out.mutable_data_ptr());
    for_rows(sets.items, sets.count1, sets.count2, [&](int64_t item, int64_t begin, int64_t end) {
      const auto others = columns_of<Real, kAxes>(second + item * sets.count2 * 2 * kAxes, sets.count2);
      const Real* const own = first + item * sets.count1 * 2 * kAxes;
      Real* const rows = overlaps + item * sets.count1 * sets.count2;
      if (generalized) {
        run<OverlapRows<Real, kAxes, true>>(own, others.pointers(), sets.count2, begin, end, rows);
      } else {
        run<OverlapRows<Real, kAxes, false>>(own, others.pointers(), sets.count2, begin, end, rows);
      }
    });
  });
  return out;
}

// A row of weights of one box, by the stride between its pairs.
template <class Real>
struct Weights {
  const Real* data;
  int64_t stride_own, stride_other;
};

// Gradients of boxes [begin, end), each summed over all others lane by lane.
template <class Real, int kAxes, bool kGeneralized>
struct DerivativeRows {
  FASTMED_HD static void run(const Real* boxes1, BoxPointers<Real, kAxes> others, int64_t count2,
                             Weights<Real> weights, int64_t begin, int64_t end, Real* out) {
    for (int64_t row = begin; row < end; ++row) {
      const Box<Real, kAxes> own = load_box<Real, kAxes>(boxes1 + row * 2 * kAxes);
      alignas(64) Real sums[2 * kAxes][kLanes] = {};
      for (int64_t first = 0; first < count2; first += kLanes) {
        const int64_t count = count2 - first < kLanes ? count2 - first : kLanes;
        const Real* const pairs = weights.data + row * weights.stride_own + first * weights.stride_other;
        alignas(64) Real weight[kLanes];
        for (int64_t lane = 0; lane < count; ++lane) weight[lane] = pairs[lane * weights.stride_other];
        if (count == kLanes) {
          add_lanes(own, others, first, kLanes, weight, sums);
        } else {
          add_lanes(own, others, first, static_cast<int>(count), weight, sums);
        }
      }
      for (int corner = 0; corner < 2 * kAxes; ++corner) {
        Real sum = Real(0);
        for (int lane = 0; lane < kLanes; ++lane) sum += sums[corner][lane];
        out[row * 2 * kAxes + corner] = sum;
      }
    }
  }

  FASTMED_HD static void add_lanes(const Box<Real, kAxes>& own, const BoxPointers<Real, kAxes>& others, int64_t first,
                                   int count, const Real* __restrict weight, Real (*__restrict sums)[kLanes]) {
    for (int lane = 0; lane < count; ++lane) {
      const auto derivative = overlap_derivative<kGeneralized>(own, others.box(first + lane), weight[lane]);
      for (int axis = 0; axis < kAxes; ++axis) {
        sums[axis][lane] += derivative.low[axis];
        sums[kAxes + axis][lane] += derivative.high[axis];
      }
    }
  }
};

// The gradient of boxes1; that of boxes2 is the same with the two exchanged and grad transposed.
Tensor box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, bool generalized) {
  const BoxSets sets = check_box_iou_backward(grad, boxes1, boxes2);
  Tensor out = torch::stable::new_empty(boxes1, {sets.items, sets.count1, boxes1.size(2)});
  for_box_type(boxes1, "boxes1", [&]<class Real, int kAxes>() {
    if (out.numel() == 0) return;
    const Real* const first = static_cast<const Real*>(boxes1.const_data_ptr());
    const Real* const second = static_cast<const Real*>(boxes2.const_data_ptr());
    Real* const gradients = static_cast<Real*>(out.mutable_data_ptr());
    for_rows(sets.items, sets.count1, sets.count2, [&](int64_t item, int64_t begin, int64_t end) {
      const auto others = columns_of<Real, kAxes>(second + item * sets.count2 * 2 * kAxes, sets.count2);
      const Weights<Real> weights{static_cast<const Real*>(grad.const_data_ptr()) + item * grad.stride(0),
                                  grad.stride(1), grad.stride(2)};
      const int64_t offset = item * sets.count1 * 2 * kAxes;
      if (generalized) {
        run<DerivativeRows<Real, kAxes, true>>(first + offset, others.pointers(), sets.count2, weights, begin, end,
                                               gradients + offset);
      } else {
        run<DerivativeRows<Real, kAxes, false>>(first + offset, others.pointers(), sets.count2, weights, begin, end,
                                                gradients + offset);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&fastmed::box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&fastmed::box_iou_backward));
}
