// overlap_counts on the CPU: lists runs of equal pairs of labels, then counts each run at once.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/label_runs.h"
#include "cpu/simd.h"
#include "dtypes.h"
#include "math/overlap.h"

namespace fastmed {
namespace {

constexpr int64_t kVoxelsPerTask = 1 << 17;
constexpr int64_t kByteValues = 256;
constexpr int64_t kMaxByteClasses = 254;  // byte labels have room for two more values
constexpr int64_t kMaxBinVoxels = int64_t{1} << 31;  // what a 32-bit bin surely holds

struct Ignore {
  bool present;
  int64_t label;
};

// One pass over the voxels per class, in steps of kLanes bytes; length is a multiple of kLanes, and at most 255 steps.
struct CountClasses {
  static constexpr int64_t kLanes = 64;

  FASTMED_HD static void run(const uint8_t* __restrict prediction, const uint8_t* __restrict target, int64_t length,
                             int64_t num_classes, bool has_ignore, uint8_t ignored, int64_t* __restrict counts) {
    for (int64_t label = 0; label < num_classes; ++label) {
      const auto byte = static_cast<uint8_t>(label);
      alignas(64) uint8_t both[kLanes] = {}, predicted[kLanes] = {}, true_ones[kLanes] = {};
      for (int64_t first = 0; first < length; first += kLanes) {
        if (label == 0) ask_for_next_block(prediction + first, target + first);
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const uint8_t counted = (target[first + lane] != ignored) | !has_ignore;
          const uint8_t in_prediction = (prediction[first + lane] == byte) & counted;
          const uint8_t in_target = (target[first + lane] == byte) & counted;
          both[lane] += in_prediction & in_target;
          predicted[lane] += in_prediction;
          true_ones[lane] += in_target;
        }
      }
      int32_t sums[kOverlapColumns] = {};
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        sums[kIntersection] += both[lane];
        sums[kPrediction] += predicted[lane];
        sums[kTarget] += true_ones[lane];
      }
      for (int column = 0; column < kOverlapColumns; ++column) counts[label * kOverlapColumns + column] += sums[column];
    }
  }
};

// Counts into the table of one item straight away.
struct DirectCounter {
  int64_t num_classes;
  Ignore ignore;
  int64_t* counts;

  FASTMED_HD void add(int64_t prediction, int64_t target, int64_t voxels) const {
    count_pair(prediction, target, num_classes, ignore.present, ignore.label,
               [&](int64_t label, int column) { counts[label * kOverlapColumns + column] += voxels; });
  }

  FASTMED_HD void add_runs(const Runs& runs, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) add(runs.prediction[i], runs.target[i], runs.length[i]);
  }

  FASTMED_HD void add_each(const uint8_t* prediction, const uint8_t* target) const {
    for (int64_t i = 0; i < kWord; ++i) add(prediction[i], target[i], 1);
  }

  void add_block(const uint8_t* prediction, const uint8_t* target) const {
    const bool is_byte = ignore.present && ignore.label >= 0 && ignore.label < kByteValues;
    run<CountClasses>(prediction, target, kBlock, num_classes, is_byte, static_cast<uint8_t>(ignore.label), counts);
  }
};

// A histogram of pairs: a row per predicted class and one for other labels; a column per target class, one for other
// labels, one for the ignored. There are two, for voxels in turn, so that no addition waits for the one before.
struct HistogramCounter {
  uint32_t* bins;  // [2, side, side]
  uint32_t side, ignored;

  FASTMED_HD uint32_t pair_of(uint8_t prediction, uint8_t target) const {
    const uint32_t other = side - 2;
    const uint32_t row = prediction < other ? prediction : other, column = target < other ? target : other;
    return row * side + (target == ignored ? side - 1 : column);
  }

  FASTMED_HD void add(uint8_t prediction, uint8_t target, int64_t voxels) const {
    bins[pair_of(prediction, target)] += static_cast<uint32_t>(voxels);
  }

  // What lies behind the last run has some labels too.
  FASTMED_HD void add_runs(const Runs& runs, int64_t count) const {
    alignas(64) uint32_t pairs[kWord];
    for (int64_t first = 0; first < count; first += kWord) {
      for (int64_t i = 0; i < kWord; ++i) pairs[i] = pair_of(runs.prediction[first + i], runs.target[first + i]);
      const int64_t end = count - first < kWord ? count - first : kWord;
      for (int64_t i = 0; i < end; ++i) bins[pairs[i]] += runs.length[first + i];
    }
  }

  FASTMED_HD void add_each(const uint8_t* __restrict prediction, const uint8_t* __restrict target) const {
    uint32_t* const others = bins + side * side;
    alignas(64) uint32_t pairs[kWord];
    for (int64_t i = 0; i < kWord; ++i) pairs[i] = pair_of(prediction[i], target[i]);
    for (int64_t i = 0; i < kWord; i += 2) {
      ++bins[pairs[i]];
      ++others[pairs[i + 1]];
    }
  }
};

class Histogram {
 public:
  static int64_t side(int64_t num_classes) { return std::min(num_classes, kByteValues) + 2; }

  Histogram(int64_t num_classes, Ignore ignore)
      : num_classes_(num_classes), side_(side(num_classes)), bins_(2 * side_ * side_) {
    const bool is_byte = ignore.present && ignore.label >= 0 && ignore.label < kByteValues;
    ignored_ = is_byte ? static_cast<uint32_t>(ignore.label) : kByteValues;
  }

  HistogramCounter counter() { return {bins_.data(), static_cast<uint32_t>(side_), ignored_}; }

  // Moves the histogram into counts [num_classes, kOverlapColumns].
  void move_to(int64_t* counts) {
    for (int64_t row = 0; row < side_ - 1; ++row) {
      for (int64_t column = 0; column < side_; ++column) {
        uint32_t& bin = bins_[row * side_ + column];
        uint32_t& other = bins_[(side_ + row) * side_ + column];
        const int64_t voxels = static_cast<int64_t>(bin) + other;
        if (voxels == 0) continue;
        bin = other = 0;
        count_pair(row, column, num_classes_, true, side_ - 1,
                   [&](int64_t label, int which) { counts[label * kOverlapColumns + which] += voxels; });
      }
    }
  }

 private:
  int64_t num_classes_, side_;
  uint32_t ignored_;
  std::vector<uint32_t> bins_;
};

// kBlock pairs, one by one.
template <class Counter>
struct CountEach {
  FASTMED_HD static void run(const uint8_t* __restrict prediction, const uint8_t* __restrict target, Counter counter) {
    for (int64_t first = 0; first < kBlock; first += kWord) {
      ask_for_next_block(prediction + first, target + first);
      counter.add_each(prediction + first, target + first);
    }
  }
};

template <class Counter>
struct CountRuns {
  FASTMED_HD static void run(const Runs* runs, int64_t count, Counter counter) { counter.add_runs(*runs, count); }
};

template <class Counter>
struct CountToEnds {
  FASTMED_HD static void run(const uint8_t* __restrict prediction, const uint8_t* __restrict target,
                             const uint16_t* __restrict ends, int64_t count, Counter counter) {
    int64_t start = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t next = ends[i] + 1;
      counter.add(prediction[start], target[start], next - start);
      start = next;
    }
  }
};

// Adds up to kBlock pairs of byte labels to counter, or class by class to direct where that is less work. Labels must
// be readable to the end of the last word, and one beyond.
template <class Counter>
void count_block(const uint8_t* prediction, const uint8_t* target, int64_t length, Counter counter,
                 const DirectCounter& direct, Runs* runs) {
  static const RunFinder finder = run_finder_for_this_machine();
  const int64_t estimate = length == kBlock ? estimated_runs(finder, prediction, target) : 0;
  if (length == kBlock && finder.prefers_classes(estimate, direct.num_classes)) {
    direct.add_block(prediction, target);
  } else if (estimate > finder.noisy) {
    run<CountEach<Counter>>(prediction, target, counter);
  } else if (finder.list_runs) {
    const int64_t count = finder.list_runs(prediction, target, length, runs);
    run<MeasureRuns>(static_cast<const uint8_t*>(runs->last), count, runs->length);
    run<CountRuns<Counter>>(static_cast<const Runs*>(runs), count, counter);
  } else {
    const int64_t count = list_ends(finder.find_ends, prediction, target, length, runs->ends);
    run<CountToEnds<Counter>>(prediction, target, static_cast<const uint16_t*>(runs->ends), count, counter);
  }
}

// As count_block, of labels with nothing readable behind them.
template <class Counter>
void count_last_block(const uint8_t* prediction, const uint8_t* target, int64_t length, Counter counter,
                      const DirectCounter& direct, Runs* runs) {
  const int64_t whole = (length - 1) / kWord * kWord, rest = length - whole;
  if (whole > 0) count_block(prediction, target, whole, counter, direct, runs);
  uint8_t own[2][kWord + 1] = {};
  std::memcpy(own[0], prediction + whole, rest);
  std::memcpy(own[1], target + whole, rest);
  count_block(own[0], own[1], rest, counter, direct, runs);
}

// Labels as bytes: num_classes for all that are no class, num_classes + 1 for the ignored.
template <class Label>
struct Narrow {
  using Unsigned = std::conditional_t<sizeof(Label) == 8, uint64_t, uint32_t>;

  FASTMED_HD static void run(const Label* __restrict labels, int64_t count, Unsigned num_classes, bool has_ignore,
                             Label ignored, uint8_t* __restrict bytes) {
    for (int64_t i = 0; i < count; ++i) {
      const Unsigned label = static_cast<Unsigned>(labels[i]);  // negative labels become large ones
      const Unsigned known = label < num_classes ? label : num_classes;
      bytes[i] = static_cast<uint8_t>(has_ignore & (labels[i] == ignored) ? num_classes + 1 : known);
    }
  }
};

bool is_byte(const Tensor& labels) {
  return labels.scalar_type() == ScalarType::Byte || labels.scalar_type() == ScalarType::Bool;
}

// One of the two label maps, in blocks of bytes.
class ByteBlocks {
 public:
  ByteBlocks(const Tensor& labels, const char* name, int64_t num_classes, Ignore ignore)
      : labels_(labels.const_data_ptr()), dtype_(labels.scalar_type()), name_(name), num_classes_(num_classes),
        ignore_(ignore), is_byte_(is_byte(labels)), bytes_(is_byte_ ? 0 : kBlock + 1) {}

  // The ignored label as the bytes have it.
  Ignore ignore() const { return is_byte_ ? ignore_ : Ignore{ignore_.present, num_classes_ + 1}; }

  const uint8_t* read(int64_t first, int64_t count) {
    if (is_byte_) return static_cast<const uint8_t*>(labels_) + first;
    for_label_dtype(dtype_, name_, [&]<class Label>() {
      const auto ignored = static_cast<Label>(ignore_.label);
      const bool has_ignore = ignore_.present && static_cast<int64_t>(ignored) == ignore_.label;
      run<Narrow<Label>>(static_cast<const Label*>(labels_) + first, count,
                         static_cast<typename Narrow<Label>::Unsigned>(num_classes_), has_ignore, ignored,
                         bytes_.data());
    });
    return bytes_.data();
  }

 private:
  const void* labels_;
  ScalarType dtype_;
  const char* name_;
  int64_t num_classes_;
  Ignore ignore_;
  bool is_byte_;
  std::vector<uint8_t> bytes_;
};

// Adds the pairs [begin, end) of byte-sized labels to counter.
template <class Counter>
void count_bytes(ByteBlocks& prediction, ByteBlocks& target, int64_t begin, int64_t end, Counter counter,
                 const DirectCounter& direct, Runs* runs) {
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    const auto count_it = count == kBlock && end - first > kBlock ? count_block<Counter> : count_last_block<Counter>;
    count_it(prediction.read(first, count), target.read(first, count), count, counter, direct, runs);
  }
}

template <class Label>
void widen(const void* labels, int64_t first, int64_t count, int64_t* out) {
  const Label* const source = static_cast<const Label*>(labels) + first;
  for (int64_t i = 0; i < count; ++i) out[i] = source[i];
}

void widen_labels(const Tensor& labels, const char* name, int64_t first, int64_t count, int64_t* out) {
  for_label_dtype(labels.scalar_type(), name,
                  [&]<class Label>() { widen<Label>(labels.const_data_ptr(), first, count, out); });
}

// Adds the pairs [begin, end) of labels of any size.
void count_wide(const Tensor& prediction, const Tensor& target, int64_t begin, int64_t end, DirectCounter counter) {
  std::vector<int64_t> predictions(kBlock), targets(kBlock);
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    widen_labels(prediction, "prediction", first, count, predictions.data());
    widen_labels(target, "target", first, count, targets.data());
    int64_t start = 0;
    for (int64_t i = 1; i <= count; ++i) {
      if (i < count && predictions[i] == predictions[start] && targets[i] == targets[start]) continue;
      counter.add(predictions[start], targets[start], i - start);
      start = i;
    }
  }
}

Tensor overlap_counts(Tensor prediction, Tensor target, int64_t num_classes, std::optional<int64_t> ignore_index) {
  check_overlap_counts(prediction, target, num_classes);
  const int64_t items = prediction.size(0);
  Tensor counts = torch::stable::new_zeros(prediction, {items, num_classes, kOverlapColumns}, ScalarType::Long);
  if (prediction.numel() == 0) return counts;

  const Ignore ignore{ignore_index.has_value(), ignore_index.value_or(0)};
  int64_t* const all_counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  const int64_t voxels = prediction.numel() / items, item_counts = num_classes * kOverlapColumns;
  const bool bytes = (is_byte(prediction) && is_byte(target)) || num_classes <= kMaxByteClasses;
  const int64_t side = Histogram::side(num_classes);
  std::mutex adding;

  torch::stable::parallel_for(0, items * voxels, kVoxelsPerTask, [&](int64_t begin, int64_t end) {
    ByteBlocks prediction_bytes(prediction, "prediction", num_classes, {false, 0});
    ByteBlocks target_bytes(target, "target", num_classes, ignore);
    std::optional<Histogram> histogram;
    std::vector<int64_t> own(item_counts);
    const auto runs = std::make_unique_for_overwrite<Runs>();
    while (begin < end) {
      const int64_t item = begin / voxels;
      const int64_t stop = std::min({end, (item + 1) * voxels, begin + kMaxBinVoxels});
      std::fill(own.begin(), own.end(), 0);
      if (!bytes) {
        count_wide(prediction, target, begin, stop, {num_classes, ignore, own.data()});
      } else {
        const DirectCounter direct{num_classes, target_bytes.ignore(), own.data()};
        if (stop - begin < side * side) {
          count_bytes(prediction_bytes, target_bytes, begin, stop, direct, direct, runs.get());
        } else {
          if (!histogram) histogram.emplace(num_classes, target_bytes.ignore());
          count_bytes(prediction_bytes, target_bytes, begin, stop, histogram->counter(), direct, runs.get());
          histogram->move_to(own.data());
        }
      }
      begin = stop;
      const std::lock_guard<std::mutex> lock(adding);
      for (int64_t i = 0; i < item_counts; ++i) all_counts[item * item_counts + i] += own[i];
    }
  });
  return counts;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("overlap_counts", TORCH_BOX(&fastmed::overlap_counts));
}
