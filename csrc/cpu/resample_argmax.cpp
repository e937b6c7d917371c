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
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kRowsPerTask = 8;

// A cell of this value has corners of different labels.
template <class Label>
constexpr Label kMixed = std::is_same_v<Label, uint8_t> ? 255 : -1;

// Arithmetic of the interpolation: the logits' own where that is float64, else float32.
template <class Logit>
using RealOf = std::conditional_t<std::is_same_v<Logit, double>, double, float>;

// Labels of consecutive voxels of the model's grid. One class means logit > 0, that is sigmoid > 0.5.
template <class Logit, class Label>
struct ArgmaxVoxels {
  FASTMED_HD static void run(const Logit* logits, int64_t class_stride, int64_t classes, int64_t length,
                             Label* __restrict labels) {
    using Real = RealOf<Logit>;
    using Wide = std::conditional_t<std::is_same_v<Real, double>, int64_t, int32_t>;
    alignas(64) Real best[kBlock];
    alignas(64) Wide label[kBlock];
    for (int64_t first = 0; first < length; first += kBlock) {
      const int64_t count = length - first < kBlock ? length - first : kBlock;
      for (int64_t i = 0; i < count; ++i) {
        best[i] = classes == 1 ? Real(0) : static_cast<Real>(logits[first + i]);
        label[i] = 0;
      }
      for (int64_t channel = classes == 1 ? 0 : 1; channel < classes; ++channel) {
        const Logit* __restrict row = logits + channel * class_stride + first;
        const Wide candidate = static_cast<Wide>(classes == 1 ? 1 : channel);
        for (int64_t i = 0; i < count; ++i) {
          const Real value = static_cast<Real>(row[i]);
          label[i] = value > best[i] ? candidate : label[i];
          best[i] = value > best[i] ? value : best[i];
        }
      }
      for (int64_t i = 0; i < count; ++i) labels[first + i] = static_cast<Label>(label[i]);
    }
  }
};

// cells[x] = the label shared by columns x and x + 1 of four rows, or kMixed.
template <class Label>
struct MarkCells {
  FASTMED_HD static void run(const Label* __restrict row0, const Label* __restrict row1,
                             const Label* __restrict row2, const Label* __restrict row3, int64_t length,
                             Label* __restrict cells) {
    for (int64_t x = 0; x < length; ++x) {
      const int64_t next = x + 1;
      const Label label = row0[x];
      const bool same = (row1[x] == label) & (row2[x] == label) & (row3[x] == label) & (row0[next] == label) &
                        (row1[next] == label) & (row2[next] == label) & (row3[next] == label);
      cells[x] = same ? label : kMixed<Label>;
    }
  }
};

struct Grid {
  int64_t depth, height, width;
  int64_t plane() const { return height * width; }
  int64_t voxels() const { return depth * plane(); }
};

// Planes of labels of the model's grid with one column of padding, so that every cell has a right-hand side.
template <class Logit, class Label>
void label_plane(const Logit* logits, int64_t classes, const Grid& grid, int64_t z, std::vector<Label>& rows) {
  const int64_t padded = grid.width + 1;
  for (int64_t y = 0; y < grid.height; ++y) {
    Label* const row = rows.data() + y * padded;
    run<ArgmaxVoxels<Logit, Label>>(logits + z * grid.plane() + y * grid.width, grid.voxels(), classes, grid.width, row);
    row[grid.width] = row[grid.width - 1];
  }
}

// One value per voxel of the model's grid: that of the cell between it and its upper neighbours.
template <class Logit, class Label>
void mark_cells(const Logit* logits, int64_t classes, const Grid& grid, Label* cells) {
  const int64_t padded = grid.width + 1;
  torch::stable::parallel_for(0, grid.depth, 1, [&](int64_t begin, int64_t end) {
    std::vector<Label> near(grid.height * padded), far(grid.height * padded);
    label_plane(logits, classes, grid, begin, near);
    for (int64_t z = begin; z < end; ++z) {
      label_plane(logits, classes, grid, std::min(z + 1, grid.depth - 1), far);
      for (int64_t y = 0; y < grid.height; ++y) {
        const int64_t row = y * padded, below = std::min(y + 1, grid.height - 1) * padded;
        run<MarkCells<Label>>(near.data() + row, near.data() + below, far.data() + row, far.data() + below,
                              grid.width, cells + z * grid.plane() + y * grid.width);
      }
      std::swap(near, far);
    }
  });
}

// The mixed voxels of one output row, with their taps along x.
template <class Real>
struct Contested {
  std::vector<int64_t> x;
  AxisTable<Real> taps;
  int32_t first = 0;  // the model's column that taps count from
  std::vector<Real> best;
  std::vector<int32_t> label;

  explicit Contested(int64_t capacity) : taps(capacity), best(capacity), label(capacity) { x.reserve(capacity); }

  int64_t count() const { return static_cast<int64_t>(x.size()); }

  void add(int64_t index, const AxisTable<Real>& row) {
    const int64_t last = count();
    taps.low[last] = row.low[index];
    taps.high[last] = row.high[index];
    taps.weight_low[last] = row.weight_low[index];
    taps.weight_high[last] = row.weight_high[index];
    x.push_back(index);
  }

  // Counts the taps from the first column they need; returns how many columns that leaves.
  int64_t narrow() {
    first = std::min(taps.low[0], taps.low[count() - 1]);  // taps are monotonic along a row
    for (int64_t i = 0; i < count(); ++i) {
      taps.low[i] -= first;
      taps.high[i] -= first;
    }
    return std::max(taps.high[0], taps.high[count() - 1]) + 1;
  }
};

// One class's turn to claim contested voxels, given its values along the row of cells.
template <class Real>
struct ClaimVoxels {
  FASTMED_HD static void run(const Real* __restrict line, AxisTaps<Real> taps, int64_t length, int32_t channel,
                             bool first, Real* __restrict best, int32_t* __restrict label) {
    for (int64_t i = 0; i < length; ++i) {
      const Real value = taps.weight_low[i] * line[taps.low[i]] + taps.weight_high[i] * line[taps.high[i]];
      const bool claims = first | (value > best[i]);
      label[i] = claims ? channel : label[i];
      best[i] = claims ? value : best[i];
    }
  }
};

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

// Writes output rows from the cells of one item of the batch.
template <class Logit, class Label>
class LabelWriter {
  using Real = RealOf<Logit>;

 public:
  LabelWriter(const Logit* logits, int64_t classes, const Grid& grid, const Label* cells, const Matrix& matrix,
              const int64_t* size, const std::optional<int64_t>& outside)
      : logits_(logits), classes_(classes), grid_(grid), cells_(cells), matrix_(matrix), width_(size[2]),
        outside_(outside), axis_aligned_(is_axis_aligned(matrix, size, kPositionTolerance)), taps_(width_),
        beyond_(width_), shared_(width_), contested_(width_), cell_(kBlock) {
    for (int64_t x = 0; axis_aligned_ && x < width_; ++x) {
      const double position = matrix.rows[2][3] + matrix.rows[2][2] * static_cast<double>(x);
      taps_.set(x, edge_tap<Real>(position, static_cast<int32_t>(grid.width)));
      beyond_[x] = outside && is_outside(position, static_cast<int32_t>(grid.width));
    }
  }

  void write(int64_t z, int64_t y, Label* out) {
    axis_aligned_ ? write_axis_aligned(z, y, out) : write_any(z, y, out);
  }

 private:
  void write_axis_aligned(int64_t z, int64_t y, Label* out) {
    const double position_z = matrix_.rows[0][0] * static_cast<double>(z) + matrix_.rows[0][3];
    const double position_y = matrix_.rows[1][1] * static_cast<double>(y) + matrix_.rows[1][3];
    const auto depth = static_cast<int32_t>(grid_.depth), height = static_cast<int32_t>(grid_.height);
    if (outside_ && (is_outside(position_z, depth) || is_outside(position_y, height))) {
      std::fill(out, out + width_, static_cast<Label>(*outside_));
      return;
    }
    const Tap<Real> tap_z = edge_tap<Real>(position_z, depth), tap_y = edge_tap<Real>(position_y, height);
    const int64_t cell_row = (tap_z.low * grid_.height + tap_y.low) * grid_.width;
    if (cell_row != shared_cell_row_) share_row(cell_row);
    std::copy(shared_.begin(), shared_.end(), out);
    if (contested_.count() > 0) settle(tap_z, tap_y, out);
  }

  // Output rows over one row of cells differ in their contested voxels alone.
  void share_row(int64_t cell_row) {
    const Label* const cells = cells_ + cell_row;
    contested_.x.clear();
    for (int64_t x = 0; x < width_; ++x) shared_[x] = cells[taps_.low[x]];
    for (int64_t x = 0; x < width_; ++x) {
      if (beyond_[x]) {
        shared_[x] = static_cast<Label>(*outside_);
      } else if (shared_[x] == kMixed<Label>) {
        contested_.add(x, taps_);
      }
    }
    if (contested_.count() > 0) line_.resize(contested_.narrow());
    shared_cell_row_ = cell_row;
  }

  void settle(const Tap<Real>& tap_z, const Tap<Real>& tap_y, Label* out) {
    const int64_t count = contested_.count();
    if (classes_ == 1) {
      std::fill_n(contested_.best.begin(), count, Real(0));
      std::fill_n(contested_.label.begin(), count, 0);
    }
    for (int64_t channel = 0; channel < classes_; ++channel) {
      const Logit* rows[4];
      Real weights[4];
      const Logit* const origin = logits_ + channel * grid_.voxels() + contested_.first;
      const int rows_count = neighbouring_rows(origin, grid_.plane(), grid_.width, tap_z, tap_y, rows, weights);
      blend_rows(rows, weights, rows_count, static_cast<int64_t>(line_.size()), line_.data());
      run<ClaimVoxels<Real>>(line_.data(), contested_.taps.pointers(), count,
                             static_cast<int32_t>(classes_ == 1 ? 1 : channel), classes_ > 1 && channel == 0,
                             contested_.best.data(), contested_.label.data());
    }
    for (int64_t i = 0; i < count; ++i) out[contested_.x[i]] = static_cast<Label>(contested_.label[i]);
  }

  void write_any(int64_t z, int64_t y, Label* out) {
    for (int64_t first = 0; first < width_; first += kBlock) {
      const int64_t count = std::min(kBlock, width_ - first);
      run<LocateCells>(matrix_, static_cast<double>(z), static_cast<double>(y), first, count, grid_, cell_.data());
      for (int64_t i = 0; i < count; ++i) {
        const int64_t cell = cell_[i] < 0 ? -1 - cell_[i] : cell_[i];
        if (cell_[i] < 0 && outside_) {
          out[first + i] = static_cast<Label>(*outside_);
        } else if (cells_[cell] != kMixed<Label>) {
          out[first + i] = cells_[cell];
        } else {
          out[first + i] = settle_one(z, y, first + i);
        }
      }
    }
  }

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
  const bool axis_aligned_;
  AxisTable<Real> taps_;
  std::vector<char> beyond_;    // columns that outside_ labels
  std::vector<Label> shared_;   // labels of the row of cells last visited
  int64_t shared_cell_row_ = -1;
  Contested<Real> contested_;
  std::vector<Real> line_;      // one class's values along contested_'s columns
  std::vector<int64_t> cell_;
};

template <class Logit, class Label>
void resample_labels(const Tensor& logits, const ParameterRows& matrix, const int64_t* size,
                     const std::optional<int64_t>& outside, Tensor& out) {
  const int64_t classes = logits.size(1), depth = size[0], height = size[1], width = size[2];
  const Grid grid{logits.size(2), logits.size(3), logits.size(4)};
  std::vector<Label> cells(grid.voxels());
  for (int64_t item = 0; item < logits.size(0); ++item) {
    const Logit* const data = static_cast<const Logit*>(logits.const_data_ptr()) + item * classes * grid.voxels();
    Label* const labels = static_cast<Label*>(out.mutable_data_ptr()) + item * depth * height * width;
    mark_cells(data, classes, grid, cells.data());
    const Matrix item_matrix = read_matrix(matrix.row(item));
    torch::stable::parallel_for(0, depth * height, kRowsPerTask, [&](int64_t begin, int64_t end) {
      LabelWriter<Logit, Label> writer(data, classes, grid, cells.data(), item_matrix, size, outside);
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
