// resample_argmax on the CPU: only cells whose corners differ are interpolated, and only the classes that may win there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/cells.h"
#include "cpu/oblique_labels.h"
#include "cpu/results.h"
#include "cpu/rows.h"
#include "cpu/straight_labels.h"
#include "dtypes.h"

namespace fastmed {
namespace {

template <class Logit, class Label>
void resample_labels(const Tensor& logits, const ParameterRows& matrix, const int64_t* size,
                     const std::optional<int64_t>& outside, Tensor& out) {
  const int64_t classes = logits.size(1), out_voxels = size[0] * size[1] * size[2];
  const Grid grid{logits.size(2), logits.size(3), logits.size(4)};
  for (int64_t item = 0; item < logits.size(0); ++item) {
    const Logit* const data = static_cast<const Logit*>(logits.const_data_ptr()) + item * classes * grid.voxels();
    Label* const labels = static_cast<Label*>(out.mutable_data_ptr()) + item * out_voxels;
    const Matrix item_matrix = read_matrix(matrix.row(item));
    // What lies outside is told by exact positions, which a tolerated slant would move.
    if (is_axis_aligned(item_matrix, size, outside ? 0.0 : kPositionTolerance)) {
      write_straight(StraightTask<Logit>(data, classes, grid, item_matrix, size, outside), labels);
    } else {
      write_oblique(data, classes, grid, item_matrix, size, outside, labels);
    }
  }
}

Tensor resample_argmax(Tensor logits, Tensor matrix, std::vector<int64_t> size, std::optional<int64_t> outside) {
  check_resample_argmax(logits, matrix, size);
  const ScalarType dtype = label_dtype(logits.size(1));
  Tensor out = new_result(logits, {logits.size(0), size[0], size[1], size[2]}, dtype);
  for_float_dtype(logits.scalar_type(), "logits", [&]<class Logit>() {
    dtype == ScalarType::Byte
        ? resample_labels<Logit, uint8_t>(logits, ParameterRows(matrix), size.data(), outside, out)
        : resample_labels<Logit, int16_t>(logits, ParameterRows(matrix), size.data(), outside, out);
  });
  return out;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("resample_argmax", TORCH_BOX(&fastmed::resample_argmax));
}
