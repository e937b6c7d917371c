// Cells of the model's grid on the CPU: labels of its voxels, cells whose corners agree, contenders in the others.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "cpu/simd.h"
#include "math/argmax.h"

namespace fastmed {

constexpr int64_t kVoxelsPerTask = 16384;  // less is done before a second thread has woken
constexpr int64_t kBlock = 512;
constexpr int kLanes = 16;

struct Grid {
  int64_t depth, height, width;
  int64_t plane() const { return height * width; }
  int64_t voxels() const { return depth * plane(); }
};

// Labels of consecutive voxels. One class means logit > 0, that is sigmoid > 0.5.
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

template <class Logit, class Real>
struct WidenVoxels {
  FASTMED_HD static void run(const Logit* __restrict logits, int64_t length, Real* __restrict values) {
    for (int64_t i = 0; i < length; ++i) values[i] = static_cast<Real>(logits[i]);
  }
};

// cells[x] = the label shared by columns x and x + 1 of four rows, or kMixed; the last column repeats.
// cells may be row0 itself.
template <class Label>
struct MarkCells {
  FASTMED_HD static void run(const Label* row0, const Label* row1, const Label* row2, const Label* row3,
                             int64_t width, Label* __restrict cells) {
    for (int64_t x = 0; x + 1 < width; ++x) {
      const int64_t next = x + 1;
      const Label label = row0[x];
      const bool same = (row1[x] == label) & (row2[x] == label) & (row3[x] == label) & (row0[next] == label) &
                        (row1[next] == label) & (row2[next] == label) & (row3[next] == label);
      cells[x] = same ? label : kMixed<Label>;
    }
    const int64_t last = width - 1;
    const Label label = row0[last];
    const bool same = row1[last] == label && row2[last] == label && row3[last] == label;
    cells[last] = same ? label : kMixed<Label>;
  }
};

// The voxels around one row of cells: rows (z, y), (z, y + 1), (z + 1, y) and (z + 1, y + 1).
template <class Real, class Label>
struct CellRow {
  const Real* values[4];  // of class 0; kLanes values behind the last class's last may be read
  const Label* labels[4];
  int64_t class_stride, classes, width;
};

// to[x] = from[index[x]]
template <class Label>
struct PickLabels {
  FASTMED_HD static void run(const Label* __restrict from, const int32_t* __restrict index, int64_t length,
                             Label* __restrict to) {
    for (int64_t x = 0; x < length; ++x) to[x] = from[index[x]];
  }
};

constexpr int kClassesPerWord = 32;

// The classes that may win inside mixed cells, given by their x in ascending order. Bit c % kClassesPerWord of
// contenders[c / kClassesPerWord * stride + x] stands for class c; kLanes words behind the last x may be written.
template <class Real, class Label>
struct FindContenders {
  FASTMED_HD static void run(CellRow<Real, Label> row, const int32_t* cells, int64_t count,
                             uint32_t* __restrict contenders, int64_t stride) {
    alignas(64) Real bound[8][kLanes];
    for (int64_t i = 0; i < count;) {
      const int32_t first = cells[i];
      for (int corner = 0; corner < 8; ++corner) {
        for (int lane = 0; lane < kLanes; ++lane) bound[corner][lane] = std::numeric_limits<Real>::infinity();
      }
      for (; i < count && cells[i] < first + kLanes; ++i) set_bounds(row, cells[i], cells[i] - first, bound);

      for (int64_t base = 0; base < row.classes; base += kClassesPerWord) {
        const int64_t left = row.classes - base;
        const int in_word = static_cast<int>(left < kClassesPerWord ? left : kClassesPerWord);
        alignas(64) uint32_t word[kLanes] = {};
        for (int bit = 0; bit < in_word; ++bit) {
          const int64_t offset = (base + bit) * row.class_stride + first;
          const Real* __restrict v0 = row.values[0] + offset;
          const Real* __restrict v1 = row.values[1] + offset;
          const Real* __restrict v2 = row.values[2] + offset;
          const Real* __restrict v3 = row.values[3] + offset;
          for (int lane = 0; lane < kLanes; ++lane) {
            const bool below = (v0[lane] < bound[0][lane]) & (v0[lane + 1] < bound[1][lane]) &
                               (v1[lane] < bound[2][lane]) & (v1[lane + 1] < bound[3][lane]) &
                               (v2[lane] < bound[4][lane]) & (v2[lane + 1] < bound[5][lane]) &
                               (v3[lane] < bound[6][lane]) & (v3[lane + 1] < bound[7][lane]);
            word[lane] |= static_cast<uint32_t>(!below) << bit;
          }
        }
        uint32_t* const to = contenders + base / kClassesPerWord * stride + first;
        for (int lane = 0; lane < kLanes; ++lane) to[lane] = word[lane];
      }
    }
  }

 private:
  // Two classes that win at corners make the bound. A column beyond the last keeps an infinite one.
  FASTMED_HD static void set_bounds(const CellRow<Real, Label>& row, int32_t x, int32_t lane, Real (*bound)[kLanes]) {
    const int64_t next = x + 1 < row.width ? 1 : 0;
    const Label rival = row.labels[0][x];
    Label other = row.labels[0][x + next];
    for (int i = 1; i < 4; ++i) {
      other = other == rival ? row.labels[i][x] : other;
      other = other == rival ? row.labels[i][x + next] : other;
    }
    for (int i = 0; i < 4; ++i) {
      const Real* const of_rival = row.values[i] + rival * row.class_stride + x;
      const Real* const of_other = row.values[i] + other * row.class_stride + x;
      const Real beyond = next == 1 ? Real(0) : std::numeric_limits<Real>::infinity();
      bound[2 * i][lane] = contender_bound(of_rival[0], of_other[0]);
      bound[2 * i + 1][lane] = contender_bound(of_rival[next], of_other[next]) + beyond;
    }
  }
};

}  // namespace fastmed
