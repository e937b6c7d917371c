// Which of a class's three counts one pair of labels raises.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace fastmed {

// Columns of the counts.
enum OverlapColumn { kIntersection = 0, kPrediction = 1, kTarget = 2, kOverlapColumns = 3 };

// Calls add(class, column) for each count that a pair of labels raises.
template <class Add>
FASTMED_HD void count_pair(int64_t prediction, int64_t target, int64_t num_classes, bool has_ignore,
                           int64_t ignore_index, const Add& add) {
  if (has_ignore && target == ignore_index) return;
  const bool prediction_counts = prediction >= 0 && prediction < num_classes;
  const bool target_counts = target >= 0 && target < num_classes;
  if (prediction_counts) add(prediction, kPrediction);
  if (target_counts) add(target, kTarget);
  if (prediction_counts && prediction == target) add(prediction, kIntersection);
}

}  // namespace fastmed
