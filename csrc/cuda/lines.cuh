// Input positions along an output row, as both CUDA resamplers compute them.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/launch.cuh"
#include "math/sampling.h"

namespace fastmed {

struct Shape {
  int32_t depth, height, width;
};

inline Shape shape_of(const std::vector<int64_t>& size) {
  return {static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1]), static_cast<int32_t>(size[2])};
}

// Input positions along one output row: start + step * x in each axis.
struct Line {
  double start[3], step[3];

  __device__ __forceinline__ double at(int axis, int32_t x) const {
    return start[axis] + step[axis] * static_cast<double>(x);
  }
};

__device__ __forceinline__ Line line_of(const double* matrix, int64_t z, int64_t y) {
  Matrix rows;
  for (int i = 0; i < 12; ++i) rows.rows[i / 4][i % 4] = matrix[i];
  Line line;
  for (int axis = 0; axis < 3; ++axis) {
    line.start[axis] = row_start(rows, axis, static_cast<double>(z), static_cast<double>(y));
    line.step[axis] = rows.rows[axis][2];
  }
  return line;
}

}  // namespace fastmed
