// softmax_overlap on the CPU: blocks of voxels whose exponentials of all classes stay in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cpu/results.h"
#include "cpu/simd.h"
#include "dtypes.h"
#include "math/overlap.h"
#include "math/sampling.h"
#include "math/softmax.h"

namespace fastmed {
namespace {

constexpr int64_t kVoxelsPerChunk = 1 << 14;  // of one item; its sums are added up in order, whatever the threads
constexpr int64_t kLanes = 32;                // sums side by side within a block
constexpr int64_t kMaxBlock = 1024;
constexpr int64_t kBlockValues = 1 << 16;     // exponentials of a block: a quarter of a small second-level cache

template <class Logit>
using RealOf = std::conditional_t<std::is_same_v<Logit, double>, double, float>;

// Voxels per block, a multiple of kLanes that divides a chunk.
int64_t block_voxels(int64_t classes) {
  int64_t voxels = kMaxBlock;
  while (voxels > kLanes && voxels * classes > kBlockValues) voxels /= 2;
  return voxels;
}

int64_t whole_lanes(int64_t voxels) { return (voxels + kLanes - 1) / kLanes * kLanes; }

template <class Logit>
struct Widen {
  FASTMED_HD static void run(const Logit* __restrict logits, int64_t count, float* __restrict wide) {
    for (int64_t i = 0; i < count; ++i) wide[i] = static_cast<float>(logits[i]);
  }
};

template <class Label>
struct FindChannels {
  FASTMED_HD static void run(const Label* __restrict labels, int64_t count, int64_t classes, bool has_ignore,
                             int64_t ignore_index, int32_t* __restrict channel) {
    for (int64_t i = 0; i < count; ++i) channel[i] = target_channel(labels[i], classes, has_ignore, ignore_index);
  }
};

// Rows of logits and of exponentials, one per class.
template <class Real>
struct Rows {
  const Real* logits;
  int64_t logits_stride;
  Real* exponentials;
  int64_t stride;
  int64_t classes;
};

// exp(logit - highest logit) of every class, and one over their sum; all zero for an ignored voxel.
template <class Real>
struct Exponentials {
  FASTMED_HD static void run(Rows<Real> rows, int64_t count, const int32_t* __restrict target,
                             Real* __restrict highest, Real* __restrict scale) {
    for (int64_t i = 0; i < count; ++i) highest[i] = rows.logits[i];
    for (int64_t channel = 1; channel < rows.classes; ++channel) {
      const Real* __restrict logits = rows.logits + channel * rows.logits_stride;
      for (int64_t i = 0; i < count; ++i) highest[i] = larger_logit(highest[i], logits[i]);
    }
    for (int64_t i = 0; i < count; ++i) scale[i] = Real(0);
    for (int64_t channel = 0; channel < rows.classes; ++channel) {
      const Real* __restrict logits = rows.logits + channel * rows.logits_stride;
      Real* __restrict exponentials = rows.exponentials + channel * rows.stride;
      for (int64_t i = 0; i < count; ++i) {
        const Real value = exp_nonpositive(logits[i] - highest[i]);
        const Real exponential = target[i] == kIgnored ? Real(0) : value;
        exponentials[i] = exponential;
        scale[i] += exponential;
      }
    }
    for (int64_t i = 0; i < count; ++i) scale[i] = target[i] == kIgnored ? Real(0) : Real(1) / scale[i];
  }
};

// A single class: its exponential is its probability.
template <class Real>
struct Sigmoids {
  FASTMED_HD static void run(Rows<Real> rows, int64_t count, const int32_t* __restrict target,
                             Real* __restrict scale) {
    const Real* __restrict logits = rows.logits;
    Real* __restrict exponentials = rows.exponentials;
    for (int64_t i = 0; i < count; ++i) {
      const Real value = sigmoid_of(logits[i]);
      exponentials[i] = target[i] == kIgnored ? Real(0) : value;
      scale[i] = Real(1);
    }
  }
};

template <class Real>
FASTMED_HD double sum_lanes(const Real* lanes) {
  double sums[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

// Adds a block to the sums [classes, kOverlapColumns]; count is a multiple of kLanes.
template <class Real>
struct SumClasses {
  FASTMED_HD static void run(Rows<Real> rows, int64_t count, const Real* __restrict scale,
                             const int32_t* __restrict target, double* __restrict sums) {
    for (int64_t channel = 0; channel < rows.classes; ++channel) {
      const Real* __restrict exponentials = rows.exponentials + channel * rows.stride;
      Real intersection[kLanes] = {}, prediction[kLanes] = {};
      int32_t voxels[kLanes] = {};
      for (int64_t first = 0; first < count; first += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const Real share = exponentials[first + lane] * scale[first + lane];
          const bool is_target = target[first + lane] == static_cast<int32_t>(channel);
          prediction[lane] += share;
          intersection[lane] += is_target ? share : Real(0);
          voxels[lane] += is_target;
        }
      }
      double* const columns = sums + channel * kOverlapColumns;
      columns[kIntersection] += sum_lanes(intersection);
      columns[kPrediction] += sum_lanes(prediction);
      columns[kTarget] += sum_lanes(voxels);
    }
  }
};

// The gain that a voxel expects of its probabilities.
template <class Real>
struct ExpectGain {
  FASTMED_HD static void run(Rows<Real> rows, int64_t count, const Real* __restrict scale,
                             const int32_t* __restrict target, const Real* __restrict grad_intersection,
                             const Real* __restrict grad_prediction, Real* __restrict expected) {
    for (int64_t i = 0; i < count; ++i) expected[i] = Real(0);
    for (int64_t channel = 0; channel < rows.classes; ++channel) {
      const Real* __restrict exponentials = rows.exponentials + channel * rows.stride;
      const Real for_intersection = grad_intersection[channel], for_prediction = grad_prediction[channel];
      for (int64_t i = 0; i < count; ++i) {
        const bool is_target = target[i] == static_cast<int32_t>(channel);
        expected[i] += exponentials[i] * class_gain(for_intersection, for_prediction, is_target);
      }
    }
    for (int64_t i = 0; i < count; ++i) expected[i] *= scale[i];
  }
};

template <class Real, class Logit>
struct WriteGradient {
  FASTMED_HD static void run(Rows<Real> rows, int64_t count, const Real* __restrict scale,
                             const int32_t* __restrict target, const Real* __restrict grad_intersection,
                             const Real* __restrict grad_prediction, const Real* __restrict expected,
                             Logit* gradient) {
    for (int64_t channel = 0; channel < rows.classes; ++channel) {
      const Real* __restrict exponentials = rows.exponentials + channel * rows.stride;
      Logit* __restrict out = gradient + channel * rows.logits_stride;
      const Real for_intersection = grad_intersection[channel], for_prediction = grad_prediction[channel];
      for (int64_t i = 0; i < count; ++i) {
        const bool is_target = target[i] == static_cast<int32_t>(channel);
        const Real gain = class_gain(for_intersection, for_prediction, is_target);
        out[i] = convert<Logit>(logit_gradient(exponentials[i], scale[i], gain, expected[i], target[i]));
      }
    }
  }
};

// The arguments that forward and backward share.
struct Request {
  Tensor logits, target;  // [items, classes, voxels], [items, voxels]
  std::optional<int64_t> ignore_index;

  int64_t items() const { return logits.size(0); }
  int64_t classes() const { return logits.size(1); }
  int64_t voxels() const { return logits.size(2); }
  int64_t chunks() const { return (voxels() + kVoxelsPerChunk - 1) / kVoxelsPerChunk; }  // per item
};

// One block after another: exponentials, scales and target channels.
template <class Logit>
class BlockSoftmax {
 public:
  using Real = RealOf<Logit>;

  explicit BlockSoftmax(const Request& request)
      : request_(request), block_(block_voxels(request.classes())), exponentials_(request.classes() * block_),
        wide_(kWidens ? exponentials_.size() : 0), highest_(block_), scale_(block_), target_(block_) {}

  int64_t block() const { return block_; }
  const Real* scale() const { return scale_.data(); }
  const int32_t* target() const { return target_.data(); }

  // Rows of a block of an item; past count the last lanes hold zeros.
  Rows<Real> compute(int64_t item, int64_t first, int64_t count) {
    const int64_t classes = request_.classes(), voxels = request_.voxels();
    find_channels(item * voxels + first, count);
    const Logit* const source = logits() + item * classes * voxels + first;
    Rows<Real> rows{nullptr, voxels, exponentials_.data(), block_, classes};
    if constexpr (kWidens) {
      for (int64_t channel = 0; channel < classes; ++channel) {
        run<Widen<Logit>>(source + channel * voxels, count, wide_.data() + channel * block_);
      }
      rows.logits = wide_.data();
      rows.logits_stride = block_;
    } else {
      rows.logits = source;
    }
    if (classes == 1) {
      run<Sigmoids<Real>>(rows, count, target_.data(), scale_.data());
    } else {
      run<Exponentials<Real>>(rows, count, target_.data(), highest_.data(), scale_.data());
    }
    clear_last_lanes(rows, count);
    rows.logits_stride = voxels;
    return rows;
  }

 private:
  static constexpr bool kWidens = !std::is_same_v<Logit, Real>;

  const Logit* logits() const { return static_cast<const Logit*>(request_.logits.const_data_ptr()); }

  void find_channels(int64_t first, int64_t count) {
    for_label_dtype(request_.target.scalar_type(), "target", [&]<class Label>() {
      run<FindChannels<Label>>(static_cast<const Label*>(request_.target.const_data_ptr()) + first, count,
                               request_.classes(), request_.ignore_index.has_value(),
                               request_.ignore_index.value_or(0), target_.data());
    });
  }

  void clear_last_lanes(const Rows<Real>& rows, int64_t count) {
    const int64_t past = whole_lanes(count) - count;
    if (past == 0) return;
    for (int64_t channel = 0; channel < rows.classes; ++channel) {
      std::fill_n(rows.exponentials + channel * rows.stride + count, past, Real(0));
    }
    std::fill_n(scale_.data() + count, past, Real(0));
    std::fill_n(target_.data() + count, past, kIgnored);
  }

  const Request& request_;
  int64_t block_;
  std::vector<Real> exponentials_, wide_, highest_, scale_;
  std::vector<int32_t> target_;
};

// Calls body(chunk, item, first voxel, end voxel) for all chunks of all items.
template <class Body>
void for_chunks(const Request& request, int64_t begin, int64_t end, const Body& body) {
  const int64_t chunks = request.chunks();
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk % chunks * kVoxelsPerChunk;
    body(chunk, chunk / chunks, first, std::min(first + kVoxelsPerChunk, request.voxels()));
  }
}

template <class Logit>
void sum_chunks(const Request& request, std::vector<double>& sums) {
  const int64_t row = request.classes() * kOverlapColumns;
  torch::stable::parallel_for(0, request.items() * request.chunks(), 1, [&](int64_t begin, int64_t end) {
    BlockSoftmax<Logit> softmax(request);
    for_chunks(request, begin, end, [&](int64_t chunk, int64_t item, int64_t first, int64_t stop) {
      for (; first < stop; first += softmax.block()) {
        const int64_t count = std::min(softmax.block(), stop - first);
        const auto rows = softmax.compute(item, first, count);
        run<SumClasses<RealOf<Logit>>>(rows, whole_lanes(count), softmax.scale(), softmax.target(),
                                       sums.data() + chunk * row);
      }
    });
  });
}

// Adds the chunks of every item, in order.
template <class Real>
void reduce_chunks(const Request& request, const std::vector<double>& sums, Real* const* columns) {
  const int64_t row = request.classes() * kOverlapColumns;
  std::vector<double> total(row);
  for (int64_t item = 0; item < request.items(); ++item) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t chunk = item * request.chunks(); chunk < (item + 1) * request.chunks(); ++chunk) {
      for (int64_t i = 0; i < row; ++i) total[i] += sums[chunk * row + i];
    }
    for (int64_t i = 0; i < row; ++i) {
      columns[i % kOverlapColumns][item * request.classes() + i / kOverlapColumns] = static_cast<Real>(total[i]);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> softmax_overlap(Tensor logits, Tensor target, std::optional<int64_t> ignore_index) {
  check_softmax_overlap(logits, target);
  const Request request{logits, target, ignore_index};
  const ScalarType dtype = sums_dtype(logits.scalar_type());
  Tensor columns[kOverlapColumns];
  for (Tensor& column : columns) {
    column = torch::stable::new_empty(logits, {request.items(), request.classes()}, dtype);
  }
  for_float_dtype(logits.scalar_type(), "logits", [&]<class Logit>() {
    using Real = RealOf<Logit>;
    std::vector<double> sums(request.items() * request.chunks() * request.classes() * kOverlapColumns);
    sum_chunks<Logit>(request, sums);
    Real* data[kOverlapColumns];
    for (int i = 0; i < kOverlapColumns; ++i) data[i] = static_cast<Real*>(columns[i].mutable_data_ptr());
    reduce_chunks<Real>(request, sums, data);
  });
  return {columns[kIntersection], columns[kPrediction], columns[kTarget]};
}

template <class Logit>
void write_gradient(const Request& request, const RealOf<Logit>* grad_intersection,
                    const RealOf<Logit>* grad_prediction, Logit* gradient) {
  using Real = RealOf<Logit>;
  const int64_t classes = request.classes(), voxels = request.voxels();
  torch::stable::parallel_for(0, request.items() * request.chunks(), 1, [&](int64_t begin, int64_t end) {
    BlockSoftmax<Logit> softmax(request);
    std::vector<Real> expected(softmax.block());
    for_chunks(request, begin, end, [&](int64_t, int64_t item, int64_t first, int64_t stop) {
      const Real* const for_intersection = grad_intersection + item * classes;
      const Real* const for_prediction = grad_prediction + item * classes;
      for (; first < stop; first += softmax.block()) {
        const int64_t count = std::min(softmax.block(), stop - first);
        const auto rows = softmax.compute(item, first, count);
        run<ExpectGain<Real>>(rows, count, softmax.scale(), softmax.target(), for_intersection, for_prediction,
                              expected.data());
        run<WriteGradient<Real, Logit>>(rows, count, softmax.scale(), softmax.target(), for_intersection,
                                        for_prediction, expected.data(), gradient + item * classes * voxels + first);
      }
    });
  });
}

Tensor softmax_overlap_backward(Tensor grad_intersection, Tensor grad_prediction, Tensor logits, Tensor target,
                                std::optional<int64_t> ignore_index) {
  check_softmax_overlap(logits, target);
  check_softmax_overlap_gradient(grad_intersection, logits, "grad_intersection");
  check_softmax_overlap_gradient(grad_prediction, logits, "grad_prediction");
  const Request request{logits, target, ignore_index};
  Tensor gradient = new_result(logits, {request.items(), request.classes(), request.voxels()});
  for_float_dtype(logits.scalar_type(), "logits", [&]<class Logit>() {
    using Real = RealOf<Logit>;
    write_gradient<Logit>(request, static_cast<const Real*>(grad_intersection.const_data_ptr()),
                          static_cast<const Real*>(grad_prediction.const_data_ptr()),
                          static_cast<Logit*>(gradient.mutable_data_ptr()));
  });
  return gradient;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("softmax_overlap", TORCH_BOX(&fastmed::softmax_overlap));
  m.impl("softmax_overlap_backward", TORCH_BOX(&fastmed::softmax_overlap_backward));
}
