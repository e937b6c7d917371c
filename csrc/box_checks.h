// Argument checks of the box ops, shared by cpu/ and cuda/: what keeps memory safe. The Python face checks values.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include "checks.h"

namespace fastmed {

// Calls body<Real, kAxes>() for float32 or float64 boxes in 2D or 3D.
template <class Body>
void for_box_type(const Tensor& boxes, const char* name, const Body& body) {
  const bool is_double = boxes.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(is_double || boxes.scalar_type() == ScalarType::Float, name, ": expected float32 or float64");
  const int64_t corners = boxes.size(boxes.dim() - 1);
  STD_TORCH_CHECK(corners == 4 || corners == 6, name, ": expected 4 or 6 corners a box, got ", corners);
  if (corners == 4) return is_double ? body.template operator()<double, 2>() : body.template operator()<float, 2>();
  is_double ? body.template operator()<double, 3>() : body.template operator()<float, 3>();
}

// Two sets of boxes per item: items x N against items x M.
struct BoxSets {
  int64_t items, count1, count2;
};

inline BoxSets check_box_sets(const Tensor& boxes1, const Tensor& boxes2) {
  STD_TORCH_CHECK(boxes1.dim() >= 2, "boxes1: expected [..., N, 4] or [..., N, 6]");
  check_dim(boxes2, boxes1.dim(), "boxes2");
  check_device(boxes2, boxes1, "boxes2");
  STD_TORCH_CHECK(boxes2.scalar_type() == boxes1.scalar_type(), "boxes2: dtype differs from boxes1's");
  STD_TORCH_CHECK(boxes1.is_contiguous(), "boxes1: expected a contiguous tensor");
  STD_TORCH_CHECK(boxes2.is_contiguous(), "boxes2: expected a contiguous tensor");
  const int64_t last = boxes1.dim() - 1;
  STD_TORCH_CHECK(boxes1.size(last) == boxes2.size(last), "boxes2: as many corners expected as boxes1 has");
  int64_t items = 1;
  for (int64_t axis = 0; axis < last - 1; ++axis) {
    STD_TORCH_CHECK(boxes1.size(axis) == boxes2.size(axis), "boxes2: batch dimensions differ from boxes1's");
    items *= boxes1.size(axis);
  }
  return {items, boxes1.size(last - 1), boxes2.size(last - 1)};
}

inline std::vector<int64_t> overlap_shape(const Tensor& boxes1, const Tensor& boxes2) {
  std::vector<int64_t> shape(boxes1.sizes().begin(), boxes1.sizes().end());
  shape.back() = boxes2.size(boxes2.dim() - 2);
  return shape;
}

// A weight for every pair of boxes of one item, by the strides of the three axes.
inline BoxSets check_box_iou_backward(const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2) {
  check_dim(boxes1, 3, "boxes1");
  const BoxSets sets = check_box_sets(boxes1, boxes2);
  check_dim(grad, 3, "grad");
  check_device(grad, boxes1, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == boxes1.scalar_type(), "grad: dtype differs from the boxes'");
  STD_TORCH_CHECK(grad.size(0) == sets.items && grad.size(1) == sets.count1 && grad.size(2) == sets.count2,
                  "grad: expected the shape of the overlaps");
  return sets;
}

// The items of a suppression, and the boxes of each.
struct BoxRows {
  int64_t items, count;
};

inline void check_per_box(const Tensor& tensor, const Tensor& boxes, const char* name) {
  const int64_t dims = boxes.dim() - 1;
  check_dim(tensor, dims, name);
  check_device(tensor, boxes, name);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  for (int64_t axis = 0; axis < dims; ++axis) {
    STD_TORCH_CHECK(tensor.size(axis) == boxes.size(axis), name, ": expected one value for every box");
  }
}

// The dtypes of boxes and scores may differ.
inline BoxRows check_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& groups) {
  STD_TORCH_CHECK(boxes.dim() >= 2, "boxes: expected [..., N, 4] or [..., N, 6]");
  STD_TORCH_CHECK(boxes.is_contiguous(), "boxes: expected a contiguous tensor");
  check_per_box(scores, boxes, "scores");
  const bool floating = scores.scalar_type() == ScalarType::Float || scores.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(floating, "scores: expected float32 or float64");
  if (groups) {
    check_per_box(*groups, boxes, "groups");
    STD_TORCH_CHECK(groups->scalar_type() == ScalarType::Long, "groups: expected int64");
  }
  const int64_t dims = boxes.dim() - 1, count = boxes.size(dims - 1);
  STD_TORCH_CHECK(count < std::numeric_limits<int32_t>::max(), "boxes: expected fewer than 2**31 - 1, got ", count);
  int64_t items = 1;
  for (int64_t axis = 0; axis < dims - 1; ++axis) items *= boxes.size(axis);
  return {items, count};
}

inline BoxRows check_nms_sorted(const Tensor& boxes, const Tensor& scores, const Tensor& order,
                                const std::optional<Tensor>& groups) {
  check_per_box(order, boxes, "order");
  STD_TORCH_CHECK(order.scalar_type() == ScalarType::Long, "order: expected int64");
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(), "scores: dtype differs from the boxes'");
  return check_nms(boxes, scores, groups);
}

// What nms_sorted counts besides: boxes kept, and whether a coordinate is infinite.
enum NmsCount { kKept = 0, kInfinite = 1, kNmsCounts = 2 };

}  // namespace fastmed
