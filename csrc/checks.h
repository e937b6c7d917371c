// Argument checks shared by cpu/ and cuda/: what keeps memory safe. The Python face checks values.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace fastmed {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_device(const Tensor& tensor, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(tensor.device() == like.device(), name, ": on another device than the first argument");
}

inline void check_dim(const Tensor& tensor, int64_t dim, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == dim, name, ": expected ", dim, " dimensions, got ", tensor.dim());
}

// Axis lengths are 32-bit inside the kernels; offsets are 64-bit.
inline void check_lengths(const int64_t* lengths, int64_t count, const char* name) {
  for (int64_t axis = 0; axis < count; ++axis) {
    STD_TORCH_CHECK(lengths[axis] > 0 && lengths[axis] < std::numeric_limits<int32_t>::max() - 1, name,
                    ": length of axis ", axis, " is ", lengths[axis], ", expected 1 to 2**31 - 3");
  }
}

inline void check_size(const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(size.size() == 3, "size: expected 3 lengths, got ", size.size());
  check_lengths(size.data(), 3, "size");
}

// One parameter set per output, or one for all: [1 or outputs, ...], contiguous float64.
inline void check_parameter(const Tensor& tensor, const Tensor& like, int64_t dim, int64_t outputs, int64_t values,
                            const char* name) {
  check_device(tensor, like, name);
  check_dim(tensor, dim, name);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, name, ": expected float64");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  STD_TORCH_CHECK(tensor.size(0) == 1 || tensor.size(0) == outputs, name, ": expected 1 or ", outputs,
                  " rows, got ", tensor.size(0));
  STD_TORCH_CHECK(tensor.numel() == tensor.size(0) * values, name, ": expected ", values, " values a row");
}

// Grids cut from one volume, or one grid per volume.
inline int64_t check_window_resample(const std::vector<Tensor>& volumes, const Tensor& matrix,
                                     const std::vector<int64_t>& size, const Tensor& scale, const Tensor& shift,
                                     const std::optional<Tensor>& window, const std::optional<Tensor>& fill,
                                     bool nearest, ScalarType dtype) {
  STD_TORCH_CHECK(!volumes.empty(), "volume: expected at least one");
  const bool floating = dtype == ScalarType::Half || dtype == ScalarType::BFloat16 || dtype == ScalarType::Float ||
                        dtype == ScalarType::Double;
  STD_TORCH_CHECK(floating || (nearest && dtype == volumes[0].scalar_type()),
                  "dtype: expected a floating dtype, or with nearest the volume's own");
  for (const Tensor& volume : volumes) {
    check_device(volume, volumes[0], "volume");
    check_dim(volume, 3, "volume");
    check_lengths(volume.sizes().data(), 3, "volume");
    STD_TORCH_CHECK(volume.scalar_type() == volumes[0].scalar_type(), "volume: all must share one dtype");
    STD_TORCH_CHECK(volume.size(2) == 1 || volume.stride(2) == 1, "volume: rows must be contiguous");
  }
  check_size(size);
  const auto count = static_cast<int64_t>(volumes.size());
  check_dim(matrix, 3, "matrix");
  const int64_t outputs = count == 1 ? matrix.size(0) : count;
  check_parameter(matrix, volumes[0], 3, outputs, 12, "matrix");
  check_parameter(scale, volumes[0], 1, outputs, 1, "scale");
  check_parameter(shift, volumes[0], 1, outputs, 1, "shift");
  if (window) check_parameter(*window, volumes[0], 2, outputs, 2, "window");
  if (fill) check_parameter(*fill, volumes[0], 1, outputs, 1, "fill");
  return outputs;
}

// Output is given by its gradient [P, D, H, W]; with a window also by its values.
inline void check_window_resample_backward(const Tensor& grad, const std::optional<Tensor>& result,
                                           const std::vector<int64_t>& shape, const Tensor& matrix,
                                           const Tensor& scale, const std::optional<Tensor>& window) {
  check_dim(grad, 4, "grad");
  check_lengths(grad.sizes().data() + 1, 3, "grad");
  STD_TORCH_CHECK(grad.is_contiguous(), "grad: expected a contiguous tensor");
  STD_TORCH_CHECK(result.has_value() == window.has_value(), "result: expected with a window, and only then");
  if (result) {
    check_device(*result, grad, "result");
    STD_TORCH_CHECK(result->scalar_type() == grad.scalar_type(), "result: expected the dtype of grad");
    STD_TORCH_CHECK(result->is_contiguous(), "result: expected a contiguous tensor");
    STD_TORCH_CHECK(result->numel() == grad.numel(), "result: expected the shape of grad");
    check_parameter(*window, grad, 2, grad.size(0), 2, "window");
  }
  STD_TORCH_CHECK(shape.size() == 3, "shape: expected 3 lengths, got ", shape.size());
  check_lengths(shape.data(), 3, "shape");
  check_parameter(matrix, grad, 3, grad.size(0), 12, "matrix");
  check_parameter(scale, grad, 1, grad.size(0), 1, "scale");
}

inline void check_resample_argmax(const Tensor& logits, const Tensor& matrix, const std::vector<int64_t>& size) {
  check_dim(logits, 5, "logits");
  STD_TORCH_CHECK(logits.is_contiguous(), "logits: expected a contiguous tensor");
  STD_TORCH_CHECK(logits.size(1) > 0 && logits.size(1) <= std::numeric_limits<int16_t>::max(),
                  "logits: expected 1 to 32767 classes, got ", logits.size(1));
  check_lengths(logits.sizes().data() + 2, 3, "logits");
  check_size(size);
  check_dim(matrix, 3, "matrix");
  check_parameter(matrix, logits, 3, logits.size(0), 12, "matrix");
}

inline void check_label_dtype(ScalarType dtype, const char* name) {
  const bool known = dtype == ScalarType::Bool || dtype == ScalarType::Byte || dtype == ScalarType::Char ||
                     dtype == ScalarType::Short || dtype == ScalarType::UInt16 || dtype == ScalarType::Int ||
                     dtype == ScalarType::Long;
  STD_TORCH_CHECK(known, name, ": expected bool, uint8, int8, int16, uint16, int32 or int64");
}

inline void check_overlap_counts(const Tensor& prediction, const Tensor& target, int64_t num_classes) {
  check_label_dtype(prediction.scalar_type(), "prediction");
  check_label_dtype(target.scalar_type(), "target");
  STD_TORCH_CHECK(prediction.dim() >= 1, "prediction: expected [B, ...]");
  check_dim(target, prediction.dim(), "target");
  check_device(target, prediction, "target");
  for (int64_t axis = 0; axis < prediction.dim(); ++axis) {
    STD_TORCH_CHECK(prediction.size(axis) == target.size(axis), "target: shape differs from prediction's");
  }
  STD_TORCH_CHECK(prediction.is_contiguous(), "prediction: expected a contiguous tensor");
  STD_TORCH_CHECK(target.is_contiguous(), "target: expected a contiguous tensor");
  STD_TORCH_CHECK(num_classes > 0, "num_classes: expected at least 1, got ", num_classes);
}

// The arithmetic and the sums of softmax_overlap.
inline ScalarType sums_dtype(ScalarType logits) {
  return logits == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Logits [B, C, voxels], target [B, voxels].
inline void check_softmax_overlap(const Tensor& logits, const Tensor& target) {
  check_label_dtype(target.scalar_type(), "target");
  check_dim(logits, 3, "logits");
  STD_TORCH_CHECK(logits.is_contiguous(), "logits: expected a contiguous tensor");
  STD_TORCH_CHECK(logits.size(1) > 0 && logits.size(1) < std::numeric_limits<int32_t>::max(),
                  "logits: expected 1 to 2**31 - 2 classes, got ", logits.size(1));
  check_dim(target, 2, "target");
  check_device(target, logits, "target");
  STD_TORCH_CHECK(target.is_contiguous(), "target: expected a contiguous tensor");
  STD_TORCH_CHECK(target.size(0) == logits.size(0) && target.size(1) == logits.size(2),
                  "target: shape differs from the logits'");
}

// One gradient per item and class, in the arithmetic of the logits.
inline void check_softmax_overlap_gradient(const Tensor& gradient, const Tensor& logits, const char* name) {
  check_dim(gradient, 2, name);
  check_device(gradient, logits, name);
  STD_TORCH_CHECK(gradient.is_contiguous(), name, ": expected a contiguous tensor");
  STD_TORCH_CHECK(gradient.size(0) == logits.size(0) && gradient.size(1) == logits.size(1), name,
                  ": expected [items, classes] of the logits");
  STD_TORCH_CHECK(gradient.scalar_type() == sums_dtype(logits.scalar_type()), name,
                  ": expected float64 for float64 logits, else float32");
}

// Labels up to 254 fit a byte with one value to spare.
inline ScalarType label_dtype(int64_t num_classes) {
  return num_classes > 255 ? ScalarType::Short : ScalarType::Byte;
}

}  // namespace fastmed
