// resample_argmax under any matrix: a map of the model's cells, and a small cache of the mixed ones' contenders.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/cells.h"
#include "math/sampling.h"

namespace fastmed {

constexpr int64_t kBlockPlanes = 4, kBlockRows = 8;  // output rows that share most of their cells
constexpr int kMaxKept = 6;
constexpr int64_t kKeptCells = 4096;

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

// The classes that may win inside one cell, with their values at its corners (z, y, x from the highest bit down).
template <class Real>
struct Contenders {
  int64_t cell = -1;
  int32_t count;  // above kMaxKept: not kept, all classes are to be asked
  int32_t label[kMaxKept];
  Real corner[kMaxKept][8];
};

// values is scratch for 8 values of each class.
template <class Logit>
struct FindCellContenders {
  using Real = RealOf<Logit>;

  FASTMED_HD static void run(const Logit* logits, int64_t class_stride, int64_t classes, const int64_t* offsets,
                             Real (*__restrict values)[8], Contenders<Real>* __restrict found) {
    alignas(64) Real best[8] = {}, bound[8];
    alignas(64) int32_t label[8] = {};
    for (int32_t channel = 0; channel < static_cast<int32_t>(classes); ++channel) {
      for (int corner = 0; corner < 8; ++corner) {
        values[channel][corner] = static_cast<Real>(logits[channel * class_stride + offsets[corner]]);
      }
      for (int corner = 0; corner < 8; ++corner) {
        const bool claims = (channel == 0) | (values[channel][corner] > best[corner]);
        label[corner] = claims ? channel : label[corner];
        best[corner] = claims ? values[channel][corner] : best[corner];
      }
    }
    int32_t other = label[0];
    for (int corner = 1; corner < 8; ++corner) other = other == label[0] ? label[corner] : other;
    for (int corner = 0; corner < 8; ++corner) {
      bound[corner] = contender_bound(values[label[0]][corner], values[other][corner]);
    }
    int32_t count = 0;
    for (int32_t channel = 0; channel < static_cast<int32_t>(classes); ++channel) {
      int below = 0;
      for (int corner = 0; corner < 8; ++corner) below += values[channel][corner] < bound[corner] ? 1 : 0;
      if (below == 8) continue;
      if (count < kMaxKept) {
        found->label[count] = channel;
        for (int corner = 0; corner < 8; ++corner) found->corner[count][corner] = values[channel][corner];
      }
      ++count;
    }
    found->count = count;
  }
};

// Writes output rows from the map of cells.
template <class Logit, class Label>
class ObliqueWriter {
  using Real = RealOf<Logit>;

 public:
  ObliqueWriter(const Logit* logits, int64_t classes, const Grid& grid, const Label* cells, const Matrix& matrix,
                int64_t width, const std::optional<int64_t>& outside)
      : logits_(logits), classes_(classes), grid_(grid), cells_(cells), matrix_(matrix), width_(width),
        outside_(outside), values_(8 * classes), kept_(std::min(kKeptCells, grid.voxels())) {}

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
          out[first + i] = settle(at, z, y, first + i);
        }
      }
    }
  }

 private:
  Label settle(int64_t cell, int64_t z, int64_t y, int64_t x) {
    const int32_t lengths[3] = {static_cast<int32_t>(grid_.depth), static_cast<int32_t>(grid_.height),
                                static_cast<int32_t>(grid_.width)};
    Tap<Real> taps[3];
    for (int axis = 0; axis < 3; ++axis) {
      const double start = row_start(matrix_, axis, static_cast<double>(z), static_cast<double>(y));
      taps[axis] = edge_tap<Real>(start + matrix_.rows[axis][2] * static_cast<double>(x), lengths[axis]);
    }
    Contenders<Real>& kept = kept_[cell % static_cast<int64_t>(kept_.size())];
    if (kept.cell != cell && classes_ > 1) learn(cell, taps, kept);
    if (classes_ == 1 || kept.count > kMaxKept) {
      const auto interpolated = [&](int64_t channel) {
        return interpolate_corners<Real>(logits_ + channel * grid_.voxels(), grid_.plane(), grid_.width, taps);
      };
      return static_cast<Label>(argmax_of(classes_, interpolated));
    }
    Real weights[8];
    for (int corner = 0; corner < 8; ++corner) {
      weights[corner] = (corner & 4 ? taps[0].weight_high : taps[0].weight_low) *
                        (corner & 2 ? taps[1].weight_high : taps[1].weight_low) *
                        (corner & 1 ? taps[2].weight_high : taps[2].weight_low);
    }
    Real best = 0;
    int32_t label = 0;
    for (int32_t k = 0; k < kept.count; ++k) {
      Real value = 0;
      for (int corner = 0; corner < 8; ++corner) value += weights[corner] * kept.corner[k][corner];
      if (k == 0 || value > best) {
        best = value;
        label = kept.label[k];
      }
    }
    return static_cast<Label>(label);
  }

  void learn(int64_t cell, const Tap<Real>* taps, Contenders<Real>& kept) {
    int64_t offsets[8];
    for (int corner = 0; corner < 8; ++corner) {
      offsets[corner] = (corner & 4 ? taps[0].high : taps[0].low) * grid_.plane() +
                        (corner & 2 ? taps[1].high : taps[1].low) * grid_.width +
                        (corner & 1 ? taps[2].high : taps[2].low);
    }
    run<FindCellContenders<Logit>>(logits_, grid_.voxels(), classes_, offsets,
                                   reinterpret_cast<Real(*)[8]>(values_.data()), &kept);
    kept.cell = cell;
  }

  const Logit* const logits_;
  const int64_t classes_;
  const Grid grid_;
  const Label* const cells_;
  const Matrix matrix_;
  const int64_t width_;
  const std::optional<int64_t> outside_;
  int64_t cell_[kBlock];
  std::vector<Real> values_;
  std::vector<Contenders<Real>> kept_;
};

template <class Logit, class Label>
void write_oblique(const Logit* logits, int64_t classes, const Grid& grid, const Matrix& matrix, const int64_t* size,
                   const std::optional<int64_t>& outside, Label* out) {
  const std::vector<Label> cells = map_of_cells<Logit, Label>(logits, classes, grid);
  const int64_t blocks_y = (size[1] + kBlockRows - 1) / kBlockRows;
  const int64_t blocks = (size[0] + kBlockPlanes - 1) / kBlockPlanes * blocks_y;
  const int64_t grain = std::max<int64_t>(1, kVoxelsPerTask / (kBlockPlanes * kBlockRows * size[2]));
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    ObliqueWriter<Logit, Label> writer(logits, classes, grid, cells.data(), matrix, size[2], outside);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first_z = block / blocks_y * kBlockPlanes, first_y = block % blocks_y * kBlockRows;
      for (int64_t z = first_z; z < std::min(first_z + kBlockPlanes, size[0]); ++z) {
        for (int64_t y = first_y; y < std::min(first_y + kBlockRows, size[1]); ++y) {
          writer.write(z, y, out + (z * size[1] + y) * size[2]);
        }
      }
    }
  });
}

}  // namespace fastmed
