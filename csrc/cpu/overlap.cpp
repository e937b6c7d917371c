// overlap_counts on the CPU: a histogram of label pairs for bytes, direct counting for the rest.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <vector>

#include "checks.h"
#include "dtypes.h"
#include "math/overlap.h"

namespace fastmed {
namespace {

constexpr int64_t kByteValues = 256;
constexpr int64_t kVoxelsPerTask = 1 << 18;  // enough to pay for clearing and reading a 256 x 256 histogram
constexpr int64_t kBlock = 4096;

struct Ignore {
  bool present;
  int64_t label;
};

// Label maps are mostly constant along a row: eight equal pairs in a run cost one comparison.
void count_byte_pairs(const uint8_t* prediction, const uint8_t* target, int64_t length, int64_t* histogram) {
  const auto bin = [&](int64_t i) -> int64_t& { return histogram[prediction[i] * kByteValues + target[i]]; };
  int64_t i = 0;
  while (i < length) {
    const uint64_t repeated_prediction = prediction[i] * 0x0101010101010101ull;
    const uint64_t repeated_target = target[i] * 0x0101010101010101ull;
    const int64_t start = i;
    for (; i + 8 <= length; i += 8) {
      uint64_t next_prediction, next_target;
      std::memcpy(&next_prediction, prediction + i, 8);
      std::memcpy(&next_target, target + i, 8);
      if (((next_prediction ^ repeated_prediction) | (next_target ^ repeated_target)) != 0) break;
    }
    bin(start) += i - start;
    const int64_t stop = std::min(i + 8, length);
    for (; i < stop; ++i) ++bin(i);
  }
}

void add_histogram(const int64_t* histogram, int64_t num_classes, Ignore ignore, int64_t* counts) {
  for (int64_t prediction = 0; prediction < kByteValues; ++prediction) {
    for (int64_t target = 0; target < kByteValues; ++target) {
      const int64_t voxels = histogram[prediction * kByteValues + target];
      if (voxels == 0) continue;
      count_pair(prediction, target, num_classes, ignore.present, ignore.label,
                 [&](int64_t label, int column) { counts[label * kOverlapColumns + column] += voxels; });
    }
  }
}

template <class Label>
void widen(const void* labels, int64_t first, int64_t count, int64_t* out) {
  const Label* const source = static_cast<const Label*>(labels) + first;
  for (int64_t i = 0; i < count; ++i) out[i] = source[i];
}

using Widen = void (*)(const void* labels, int64_t first, int64_t count, int64_t* out);

Widen widen_for(ScalarType dtype, const char* name) {
  return for_label_dtype(dtype, name, []<class Label>() -> Widen { return widen<Label>; });
}

bool is_byte(const Tensor& labels) {
  return labels.scalar_type() == ScalarType::Byte || labels.scalar_type() == ScalarType::Bool;
}

Tensor overlap_counts(Tensor prediction, Tensor target, int64_t num_classes, std::optional<int64_t> ignore_index) {
  check_overlap_counts(prediction, target, num_classes);
  const int64_t items = prediction.size(0);
  Tensor counts = torch::stable::new_zeros(prediction, {items, num_classes, kOverlapColumns}, ScalarType::Long);
  if (prediction.numel() == 0) return counts;

  const Ignore ignore{ignore_index.has_value(), ignore_index.value_or(0)};
  const Widen widen_prediction = widen_for(prediction.scalar_type(), "prediction");
  const Widen widen_target = widen_for(target.scalar_type(), "target");
  const void* const predictions = prediction.const_data_ptr();
  const void* const targets = target.const_data_ptr();
  int64_t* const all_counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  const int64_t voxels = prediction.numel() / items;
  const bool bytes = is_byte(prediction) && is_byte(target);
  std::mutex adding;

  torch::stable::parallel_for(0, items * voxels, kVoxelsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own(num_classes * kOverlapColumns), histogram, wide_prediction, wide_target;
    while (begin < end) {
      const int64_t item = begin / voxels;
      const int64_t stop = std::min(end, (item + 1) * voxels);
      std::fill(own.begin(), own.end(), 0);
      if (bytes && stop - begin >= kByteValues * kByteValues) {
        histogram.assign(kByteValues * kByteValues, 0);
        count_byte_pairs(static_cast<const uint8_t*>(predictions) + begin,
                         static_cast<const uint8_t*>(targets) + begin, stop - begin, histogram.data());
        add_histogram(histogram.data(), num_classes, ignore, own.data());
        begin = stop;
      }
      wide_prediction.resize(kBlock);
      wide_target.resize(kBlock);
      while (begin < stop) {
        const int64_t count = std::min(kBlock, stop - begin);
        widen_prediction(predictions, begin, count, wide_prediction.data());
        widen_target(targets, begin, count, wide_target.data());
        for (int64_t i = 0; i < count; ++i) {
          count_pair(wide_prediction[i], wide_target[i], num_classes, ignore.present, ignore.label,
                     [&](int64_t label, int column) { ++own[label * kOverlapColumns + column]; });
        }
        begin += count;
      }
      const std::lock_guard<std::mutex> lock(adding);
      int64_t* const item_counts = all_counts + item * num_classes * kOverlapColumns;
      for (size_t i = 0; i < own.size(); ++i) item_counts[i] += own[i];
    }
  });
  return counts;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("overlap_counts", TORCH_BOX(&fastmed::overlap_counts));
}
