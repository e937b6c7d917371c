// resample_argmax on grids whose axes stay parallel: one row of cells serves all output rows that cross it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/cells.h"
#include "cpu/rows.h"
#include "math/sampling.h"

namespace fastmed {

constexpr int kMaxRun = 8;
constexpr int32_t kMaxCount = 15;
constexpr int64_t kMaxTileRows = 8;
constexpr int64_t kMaxTilePlanes = 16;
constexpr int64_t kMaxPiece = 128;
constexpr int64_t kTileBytes = 1 << 20;

// One axis of the output: taps, which of its voxels outside labels, and the pieces that tasks consist of.
template <class Real>
struct OutputAxis {
  AxisTable<Real> taps;
  std::vector<char> beyond;
  std::vector<int64_t> pieces;  // ends, after a leading 0; each piece spans at most `cells` cells

  OutputAxis(double step, double origin, int64_t size, int64_t length, bool has_outside, int64_t cells)
      : taps(size), beyond(size), pieces{0} {
    for (int64_t i = 0; i < size; ++i) {
      const double position = origin + step * static_cast<double>(i);
      taps.set(i, edge_tap<Real>(position, static_cast<int32_t>(length)));
      beyond[i] = has_outside && is_outside(position, static_cast<int32_t>(length));
    }
    for (int64_t i = 1; i < size; ++i) {
      const bool full = std::abs(taps.low[i] - taps.low[pieces.back()]) >= cells;
      if (full || i - pieces.back() == kMaxPiece) pieces.push_back(i);
    }
    pieces.push_back(size);
  }

  int64_t count() const { return static_cast<int64_t>(pieces.size()) - 1; }

  // End of the outputs from begin on that lie in one cell.
  int64_t same_cell(int64_t begin, int64_t end) const {
    int64_t i = begin + 1;
    while (i < end && taps.low[i] == taps.low[begin]) ++i;
    return i;
  }
};

// Neighbouring output voxels of one cell, at most kMaxRun; a shorter run repeats its last voxel.
template <class Real>
struct Run {
  int32_t cell, x[kMaxRun];
  Real weight_low[kMaxRun], weight_high[kMaxRun];
};

// The runs of an output row by ascending cell, each `length` voxels long.
template <class Real>
struct Runs {
  std::vector<Run<Real>> runs;
  int length = 1;

  Runs(const OutputAxis<Real>& axis, double step) {
    const double per_cell = std::ceil(1.0 / std::abs(step) - 1e-6);
    length = per_cell >= kMaxRun ? kMaxRun : per_cell > 1 ? static_cast<int>(per_cell) : 1;
    const int64_t size = static_cast<int64_t>(axis.beyond.size());
    for (int64_t x = 0; x < size;) {
      if (axis.beyond[x]) {
        ++x;
        continue;
      }
      Run<Real> run;
      run.cell = axis.taps.low[x];
      for (int i = 0; i < length; ++i) {
        run.x[i] = static_cast<int32_t>(x);
        run.weight_low[i] = axis.taps.weight_low[x];
        run.weight_high[i] = axis.taps.weight_high[x];
        const bool follows = i + 1 < length && x + 1 < size && axis.taps.low[x + 1] == run.cell && !axis.beyond[x + 1];
        if (follows) ++x;
      }
      ++x;
      runs.push_back(run);
    }
    if (step < 0) std::reverse(runs.begin(), runs.end());
  }
};

// kLanes runs side by side, and where their contenders stand.
template <class Real>
struct RunBlock {
  alignas(64) int32_t x[kMaxRun][kLanes];
  Real weight_low[kMaxRun][kLanes], weight_high[kMaxRun][kLanes];
  int64_t first_contender, contenders;
};

// One class per lane with its values at the corners of the lane's cell; classes ascend from block to block.
template <class Real>
struct ContenderBlock {
  using Wide = std::conditional_t<std::is_same_v<Real, double>, int64_t, int32_t>;
  alignas(64) Real corner[8][kLanes];  // z, y, x from the highest bit down
  Wide label[kLanes];
};

// Labels of the mixed voxels of one output row; weights are those of the four rows of voxels around it.
template <class Real, class Label>
struct SettleRow {
  FASTMED_HD static void run(const RunBlock<Real>* blocks, int64_t count, const ContenderBlock<Real>* contenders,
                             int length, const Real* weights, Label* out) {
    using Wide = typename ContenderBlock<Real>::Wide;
    const Real w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
    for (int64_t b = 0; b < count; ++b) {
      const RunBlock<Real>& block = blocks[b];
      alignas(64) Real best[kMaxRun][kLanes], left[kLanes], right[kLanes];
      alignas(64) Wide label[kMaxRun][kLanes];
      for (int64_t k = 0; k < block.contenders; ++k) {
        const ContenderBlock<Real>& contender = contenders[block.first_contender + k];
        const Real(&corner)[8][kLanes] = contender.corner;
        for (int i = 0; i < kLanes; ++i) {
          left[i] = w0 * corner[0][i] + w1 * corner[2][i] + w2 * corner[4][i] + w3 * corner[6][i];
          right[i] = w0 * corner[1][i] + w1 * corner[3][i] + w2 * corner[5][i] + w3 * corner[7][i];
        }
        for (int voxel = 0; voxel < length; ++voxel) {
          for (int i = 0; i < kLanes; ++i) {
            const Real value = block.weight_low[voxel][i] * left[i] + block.weight_high[voxel][i] * right[i];
            const bool claims = (k == 0) | (value > best[voxel][i]);
            label[voxel][i] = claims ? contender.label[i] : label[voxel][i];
            best[voxel][i] = claims ? value : best[voxel][i];
          }
        }
      }
      for (int voxel = 0; voxel < length; ++voxel) {
        for (int i = 0; i < kLanes; ++i) out[block.x[voxel][i]] = static_cast<Label>(label[voxel][i]);
      }
    }
  }
};

// What all threads read.
template <class Logit>
struct StraightTask {
  using Real = RealOf<Logit>;
  const Logit* logits;
  int64_t classes;
  Grid grid;
  std::optional<int64_t> outside;
  int64_t tile_rows;  // cells along y whose voxels a thread keeps
  OutputAxis<Real> z, y, x;
  Runs<Real> runs;

  StraightTask(const Logit* data, int64_t class_count, const Grid& of, const Matrix& matrix, const int64_t* size,
               const std::optional<int64_t>& label_outside)
      : logits(data), classes(class_count), grid(of), outside(label_outside), tile_rows(rows_of_tile(class_count, of)),
        z(axis(0, matrix, size, of.depth, std::clamp<int64_t>(of.depth / 8, 1, kMaxTilePlanes))),
        y(axis(1, matrix, size, of.height, tile_rows)), x(axis(2, matrix, size, of.width, of.width)),
        runs(x, matrix.rows[2][2]) {}

 private:
  static int64_t rows_of_tile(int64_t classes, const Grid& grid) {
    const int64_t row_bytes = 2 * std::max<int64_t>(classes, 2) * grid.width * static_cast<int64_t>(sizeof(Real));
    return std::clamp<int64_t>(std::min(kTileBytes / row_bytes - 1, grid.height / 8), 1, kMaxTileRows);
  }

  OutputAxis<Real> axis(int index, const Matrix& matrix, const int64_t* size, int64_t length, int64_t cells) const {
    return {matrix.rows[index][index], matrix.rows[index][3], size[index], length, outside.has_value(), cells};
  }
};

// Writes pieces of output planes and rows. Keeps the voxels of two planes of the model's grid over the piece's rows.
template <class Logit, class Label>
class StraightWriter {
  using Real = RealOf<Logit>;

 public:
  explicit StraightWriter(const StraightTask<Logit>& task)
      : task_(task), classes_(std::max<int64_t>(task.classes, 2)), width_(task.grid.width),
        rows_(std::min(task.tile_rows + 1, task.grid.height)),
        class_stride_((rows_ * width_ + 2 * kLanes - 1) / kLanes / 2 * 2 * kLanes + kLanes),  // never a multiple of 4 KiB
        word_stride_(width_ + kLanes), cells_(width_), shared_(task.x.beyond.size()),
        words_((classes_ + kClassesPerWord - 1) / kClassesPerWord * word_stride_), found_runs_(task.runs.runs.size() + 1),
        rank_(found_runs_.size()), mixed_runs_(found_runs_.size()), mixed_cells_(found_runs_.size()) {
    for (Plane& plane : planes_) {
      plane.values.resize(classes_ * class_stride_ + 2 * kLanes);
      plane.labels.resize(rows_ * width_);
    }
  }

  // Output rows of the piece_z-th piece along z and the piece_y-th along y.
  void write(int64_t piece_z, int64_t piece_y, Label* out) {
    const OutputAxis<Real>&z_axis = task_.z, &y_axis = task_.y;
    const int64_t y_begin = y_axis.pieces[piece_y], y_end = y_axis.pieces[piece_y + 1];
    const auto [first_low, last_low] = std::minmax(y_axis.taps.low[y_begin], y_axis.taps.low[y_end - 1]);
    first_row_ = first_low;
    loaded_rows_ = std::min<int64_t>(last_low + 2, task_.grid.height) - first_row_;
    for (Plane& plane : planes_) plane.z = -1;
    const int64_t z_last = z_axis.pieces[piece_z + 1];
    for (int64_t z = z_axis.pieces[piece_z], z_end; z < z_last; z = z_end) {
      z_end = z_axis.same_cell(z, z_last);
      for (int64_t y = y_begin, next; y < y_end; y = next) {
        next = y_axis.same_cell(y, y_end);
        enter(z, y);
        for (int64_t to_z = z; to_z < z_end; ++to_z) {
          for (int64_t to_y = y; to_y < next; ++to_y) {
            write_row(to_z, to_y, out + (to_z * static_cast<int64_t>(y_axis.beyond.size()) + to_y) * out_width());
          }
        }
      }
    }
  }

 private:
  struct Plane {
    int64_t z = -1;
    std::vector<Real> values;
    std::vector<Label> labels;
  };

  int64_t out_width() const { return static_cast<int64_t>(shared_.size()); }

  const Plane& plane(int64_t z) {
    Plane& kept = planes_[z & 1];
    if (kept.z == z) return kept;
    const int64_t count = loaded_rows_ * width_;
    const Logit* from = task_.logits + z * task_.grid.plane() + first_row_ * width_;
    // A single class competes with one that is 0 everywhere.
    for (int64_t channel = classes_ - task_.classes; channel < classes_; ++channel, from += task_.grid.voxels()) {
      run<WidenVoxels<Logit, Real>>(from, count, kept.values.data() + channel * class_stride_);
    }
    run<ArgmaxVoxels<Real, Label>>(kept.values.data(), class_stride_, classes_, count, kept.labels.data());
    kept.z = z;
    return kept;
  }

  // Prepares the row of cells that output row (z, y) crosses.
  void enter(int64_t z, int64_t y) {
    const Plane &near = plane(task_.z.taps.low[z]), &far = plane(task_.z.taps.high[z]);
    const int64_t row = (task_.y.taps.low[y] - first_row_) * width_, below = (task_.y.taps.high[y] - first_row_) * width_;
    const CellRow<Real, Label> cell_row{
        {near.values.data() + row, near.values.data() + below, far.values.data() + row, far.values.data() + below},
        {near.labels.data() + row, near.labels.data() + below, far.labels.data() + row, far.labels.data() + below},
        class_stride_, classes_, width_};
    run<MarkCells<Label>>(cell_row.labels[0], cell_row.labels[1], cell_row.labels[2], cell_row.labels[3], width_,
                          cells_.data());
    run<PickLabels<Label>>(cells_.data(), task_.x.taps.low.data(), out_width(), shared_.data());
    for (int64_t x = 0; task_.outside && x < out_width(); ++x) {
      if (task_.x.beyond[x]) shared_[x] = static_cast<Label>(*task_.outside);
    }
    find_mixed();
    run<FindContenders<Real, Label>>(cell_row, mixed_cells_.data(), mixed_cell_count_, words_.data(), word_stride_);
    order_runs();
    gather(cell_row);
  }

  void find_mixed() {
    const Label* const cells = cells_.data();
    const std::vector<Run<Real>>& runs = task_.runs.runs;
    int64_t run_count = 0, cell_count = 0;
    int32_t last = -1;
    for (int32_t i = 0; i < static_cast<int32_t>(runs.size()); ++i) {
      const int32_t cell = runs[i].cell;
      const bool mixed = cells[cell] == kMixed<Label>;
      found_runs_[run_count] = i;
      mixed_cells_[cell_count] = cell;
      run_count += mixed;
      cell_count += mixed && cell != last;
      last = mixed ? cell : last;
    }
    mixed_run_count_ = run_count;
    mixed_cell_count_ = cell_count;
  }

  // Runs with equally many contenders stand side by side, so that few lanes of a block idle.
  void order_runs() {
    int32_t places[kMaxCount + 2] = {};
    for (int64_t i = 0; i < mixed_run_count_; ++i) {
      const int32_t cell = task_.runs.runs[found_runs_[i]].cell;
      int32_t count = 0;
      for (int64_t word = cell; word < static_cast<int64_t>(words_.size()); word += word_stride_) {
        count += __builtin_popcount(words_[word]);
      }
      rank_[i] = kMaxCount - std::min(count, kMaxCount);
      ++places[rank_[i] + 1];
    }
    for (int rank = 0; rank < kMaxCount; ++rank) places[rank + 1] += places[rank];
    for (int64_t i = 0; i < mixed_run_count_; ++i) mixed_runs_[places[rank_[i]]++] = found_runs_[i];
  }

  void gather(const CellRow<Real, Label>& row) {
    const int64_t count = mixed_run_count_;
    blocks_.resize((count + kLanes - 1) / kLanes);
    int64_t used = 0;
    for (int64_t b = 0; b < static_cast<int64_t>(blocks_.size()); ++b) {
      RunBlock<Real>& block = blocks_[b];
      if (static_cast<int64_t>(contenders_.size()) < used + classes_) contenders_.resize(2 * used + classes_);
      ContenderBlock<Real>* const contenders = contenders_.data() + used;
      int64_t found[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const Run<Real>& each = task_.runs.runs[mixed_runs_[std::min(b * kLanes + lane, count - 1)]];
        for (int voxel = 0; voxel < task_.runs.length; ++voxel) {
          block.x[voxel][lane] = each.x[voxel];
          block.weight_low[voxel][lane] = each.weight_low[voxel];
          block.weight_high[voxel][lane] = each.weight_high[voxel];
        }
        found[lane] = gather_cell(row, each.cell, contenders, lane);
      }
      block.first_contender = used;
      block.contenders = *std::max_element(found, found + kLanes);
      // A class that stands again never exceeds itself.
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int64_t k = found[lane]; k < block.contenders; ++k) {
          for (int corner = 0; corner < 8; ++corner) {
            contenders[k].corner[corner][lane] = contenders[0].corner[corner][lane];
          }
          contenders[k].label[lane] = contenders[0].label[lane];
        }
      }
      used += block.contenders;
    }
  }

  // How many classes contend inside the cell.
  int64_t gather_cell(const CellRow<Real, Label>& row, int32_t cell, ContenderBlock<Real>* contenders, int lane) const {
    const int64_t next = cell + 1 < width_ ? 1 : 0;
    int64_t found = 0;
    for (int64_t base = 0; base < classes_; base += kClassesPerWord) {
      for (uint32_t word = words_[base / kClassesPerWord * word_stride_ + cell]; word != 0; word &= word - 1) {
        const int64_t channel = base + __builtin_ctz(word);
        ContenderBlock<Real>& contender = contenders[found++];
        const int64_t offset = channel * class_stride_ + cell;
        for (int i = 0; i < 4; ++i) {
          contender.corner[2 * i][lane] = row.values[i][offset];
          contender.corner[2 * i + 1][lane] = row.values[i][offset + next];
        }
        contender.label[lane] = static_cast<typename ContenderBlock<Real>::Wide>(channel);
      }
    }
    return found;
  }

  void write_row(int64_t z, int64_t y, Label* out) const {
    if (task_.z.beyond[z] || task_.y.beyond[y]) {
      std::fill_n(out, out_width(), static_cast<Label>(*task_.outside));
      return;
    }
    std::copy(shared_.begin(), shared_.end(), out);
    if (blocks_.empty()) return;
    const AxisTable<Real>&z_taps = task_.z.taps, &y_taps = task_.y.taps;
    const Real weights[4] = {z_taps.weight_low[z] * y_taps.weight_low[y], z_taps.weight_low[z] * y_taps.weight_high[y],
                             z_taps.weight_high[z] * y_taps.weight_low[y],
                             z_taps.weight_high[z] * y_taps.weight_high[y]};
    run<SettleRow<Real, Label>>(blocks_.data(), static_cast<int64_t>(blocks_.size()), contenders_.data(),
                                task_.runs.length, weights, out);
  }

  const StraightTask<Logit>& task_;
  const int64_t classes_, width_, rows_, class_stride_, word_stride_;
  int64_t first_row_ = 0, loaded_rows_ = 0;
  Plane planes_[2];
  std::vector<Label> cells_, shared_;
  std::vector<uint32_t> words_;
  int64_t mixed_run_count_ = 0, mixed_cell_count_ = 0;
  std::vector<int32_t> found_runs_, rank_, mixed_runs_, mixed_cells_;
  std::vector<RunBlock<Real>> blocks_;
  std::vector<ContenderBlock<Real>> contenders_;
};

template <class Logit, class Label>
void write_straight(const StraightTask<Logit>& task, Label* out) {
  const int64_t pieces = task.z.count() * task.y.count();
  const int64_t voxels = static_cast<int64_t>(task.z.beyond.size() * task.y.beyond.size() * task.x.beyond.size());
  const int64_t grain = voxels > kVoxelsPerTask ? 1 : pieces;
  // Pieces differ in what is inside them, so that threads take the next as they come free.
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, pieces, grain, [&](int64_t, int64_t) {
    StraightWriter<Logit, Label> writer(task);
    for (int64_t piece; (piece = next.fetch_add(1)) < pieces;) {
      writer.write(piece / task.y.count(), piece % task.y.count(), out);
    }
  });
}

}  // namespace fastmed
