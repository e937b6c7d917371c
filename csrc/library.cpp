// Every op's schema: the table of contents of the native code.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastmed, m) {
  m.def(
      "window_resample(Tensor[] volumes, Tensor matrix, SymInt[] size, Tensor scale, Tensor shift, "
      "Tensor? window, Tensor? fill, bool nearest, ScalarType dtype) -> Tensor");
  m.def(
      "window_resample_backward(Tensor grad, Tensor? result, SymInt[] shape, Tensor matrix, Tensor scale, "
      "Tensor? window, bool fill, bool nearest, ScalarType dtype) -> Tensor");
  m.def("resample_argmax(Tensor logits, Tensor matrix, SymInt[] size, int? outside) -> Tensor");
  m.def("overlap_counts(Tensor prediction, Tensor target, int num_classes, int? ignore_index) -> Tensor");
  m.def(
      "softmax_overlap(Tensor logits, Tensor target, int? ignore_index) -> "
      "(Tensor intersection, Tensor prediction, Tensor target)");
  m.def(
      "softmax_overlap_backward(Tensor grad_intersection, Tensor grad_prediction, Tensor logits, Tensor target, "
      "int? ignore_index) -> Tensor");
  m.def("box_iou(Tensor boxes1, Tensor boxes2, bool generalized) -> Tensor");
  m.def("box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, bool generalized) -> Tensor");
  m.def(
      "nms(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> (Tensor kept, Tensor infinite)");
  m.def("nms_mask(Tensor boxes, Tensor scores, Tensor? groups, float iou_threshold) -> Tensor");
  m.def(
      "nms_sorted(Tensor boxes, Tensor scores, Tensor order, Tensor? groups, float iou_threshold) "
      "-> (Tensor keep, Tensor counts)");
  m.def("instruction_set() -> int");
  m.def("keep_result_memory(int bytes) -> int");
}
