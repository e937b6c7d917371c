// resample_argmax on the CPU: a map of the cells whose corners agree, then interpolation in the others alone.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "checks.h"
#include "cpu/cells.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "cpu/straight_labels.h"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

constexpr int64_t kRowsPerTask = 8;
constexpr int64_t kVoxelsPerTask = 16384;

// Cells of consecutive output voxels under any matrix; cell[x] is negative more than half a voxel outside.
struct LocateCells {
  FASTMED_HD static void run(Matrix matrix, double z, double y, int64_t first, int64_t count, Grid grid,
                             int64_t* __restrict cell) {
    const int32_t lengths[3] = {static_cast<int32_t>(grid.depth), static_cast<int32_t>(grid.height),
                                static_cast<int32_t>(grid.width)};
    alignas(64) int32_t index[3][kBlock];
    alignas(64) int32_t outside[kBlock];
    for (int64_t i = 0; i < count; ++i) outside[i] = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const double start = row_start(matrix, axis, z, y), step = matrix.rows[axis][2];
      for (int32_t i = 0; i < static_cast<int32_t>(count); ++i) {
        const double position = start + step * static_cast<double>(static_cast<int32_t>(first) + i);
        index[axis][i] = edge_index(position, lengths[axis]);
        outside[i] |= is_outside(position, lengths[axis]) ? 1 : 0;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t inside = (index[0][i] * grid.height + index[1][i]) * grid.width + index[2][i];
      cell[i] = outside[i] ? -1 - inside : inside;
    }
  }
};

// Labels of the model's grid, turned in ascending order into cells: what a cell needs is not yet overwritten.
template <class Logit, class Label>
std::vector<Label> map_of_cells(const Logit* logits, int64_t classes, const Grid& grid) {
  std::vector<Label> cells(grid.voxels());
  torch::stable::parallel_for(0, grid.voxels(), kVoxelsPerTask, [&](int64_t begin, int64_t end) {
    run<ArgmaxVoxels<Logit, Label>>(logits + begin, grid.voxels(), classes, end - begin, cells.data() + begin);
  });
  std::vector<Label> row(grid.width);
  for (int64_t z = 0; z < grid.depth; ++z) {
    const int64_t far = z + 1 < grid.depth ? grid.plane() : 0;
    for (int64_t y = 0; y < grid.height; ++y) {
      const int64_t below = y + 1 < grid.height ? grid.width : 0;
      Label* const near = cells.data() + z * grid.plane() + y * grid.width;
      run<MarkCells<Label>>(near, near + below, near + far, near + far + below, grid.width, row.data());
      std::copy(row.begin(), row.end(), near);
    }
  }
  return cells;
}

// Writes output rows from the cells, under any matrix.
template <class Logit, class Label>
class ObliqueWriter {
  using Real = RealOf<Logit>;

 public:
  ObliqueWriter(const Logit* logits, int64_t classes, const Grid& grid, const Label* cells, const Matrix& matrix,
                int64_t width, const std::optional<int64_t>& outside)
      : logits_(logits), classes_(classes), grid_(grid), cells_(cells), matrix_(matrix), width_(width),
        outside_(outside) {}

  void write(int64_t z, int64_t y, Label* out) {
    for (int64_t first = 0; first < width_; first += kBlock) {
      const int64_t count = std::min(kBlock, width_ - first);
      run<LocateCells>(matrix_, static_cast<double>(z), static_cast<double>(y), first, count, grid_, cell_);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = cell_[i] < 0 ? -1 - cell_[i] : cell_[i];
        if (cell_[i] < 0 && outside_) {
          out[first + i] = static_cast<Label>(*outside_);
        } else if (cells_[at] != kMixed<Label>) {
          out[first + i] = cells_[at];
        } else {
          out[first + i] = settle_one(z, y, first + i);
        }
      }
    }
  }

 private:
  Label settle_one(int64_t z, int64_t y, int64_t x) const {
    const int32_t lengths[3] = {static_cast<int32_t>(grid_.depth), static_cast<int32_t>(grid_.height),
                                static_cast<int32_t>(grid_.width)};
    Tap<Real> taps[3];
    for (int axis = 0; axis < 3; ++axis) {
      const double start = row_start(matrix_, axis, static_cast<double>(z), static_cast<double>(y));
      taps[axis] = edge_tap<Real>(start + matrix_.rows[axis][2] * static_cast<double>(x), lengths[axis]);
    }
    const auto interpolate = [&](int64_t channel) {
      return interpolate_corners<Real>(logits_ + channel * grid_.voxels(), grid_.plane(), grid_.width, taps);
    };
    return static_cast<Label>(argmax_of(classes_, interpolate));
  }

  const Logit* const logits_;
  const int64_t classes_;
  const Grid grid_;
  const Label* const cells_;
  const Matrix matrix_;
  const int64_t width_;
  const std::optional<int64_t> outside_;
  int64_t cell_[kBlock];
};

template <class Logit, class Label>
void resample_labels(const Tensor& logits, const ParameterRows& matrix, const int64_t* size,
                     const std::optional<int64_t>& outside, Tensor& out) {
  const int64_t classes = logits.size(1), depth = size[0], height = size[1], width = size[2];
  const Grid grid{logits.size(2), logits.size(3), logits.size(4)};
  for (int64_t item = 0; item < logits.size(0); ++item) {
    const Logit* const data = static_cast<const Logit*>(logits.const_data_ptr()) + item * classes * grid.voxels();
    Label* const labels = static_cast<Label*>(out.mutable_data_ptr()) + item * depth * height * width;
    const Matrix item_matrix = read_matrix(matrix.row(item));
    if (is_axis_aligned(item_matrix, size, kPositionTolerance)) {
      write_straight(StraightTask<Logit>(data, classes, grid, item_matrix, size, outside), labels);
      continue;
    }
    const std::vector<Label> cells = map_of_cells<Logit, Label>(data, classes, grid);
    torch::stable::parallel_for(0, depth * height, kRowsPerTask, [&](int64_t begin, int64_t end) {
      ObliqueWriter<Logit, Label> writer(data, classes, grid, cells.data(), item_matrix, width, outside);
      for (int64_t row = begin; row < end; ++row) writer.write(row / height, row % height, labels + row * width);
    });
  }
}

Tensor resample_argmax(Tensor logits, Tensor matrix, std::vector<int64_t> size, std::optional<int64_t> outside) {
  check_resample_argmax(logits, matrix, size);
  const ScalarType dtype = label_dtype(logits.size(1));
  Tensor out = torch::stable::new_empty(logits, {logits.size(0), size[0], size[1], size[2]}, dtype);
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
