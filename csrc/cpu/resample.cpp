// window_resample on the CPU: one row of output at a time, in three vectorised steps: sample, cover, finish.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "checks.h"
#include "cpu/gather.h"
#include "cpu/oblique_rows.h"
#include "cpu/planes.h"
#include "cpu/results.h"
#include "cpu/rows.h"
#include "cpu/simd.h"
#include "dtypes.h"
#include "math/sampling.h"

namespace fastmed {
namespace {

constexpr int64_t kVoxelsPerTask = 32768;  // less is done before a second thread has woken
constexpr int64_t kRowsPerBundle = 4;  // of one y: slanting rows share voxels with their neighbours in depth
constexpr int64_t kRowsAhead = 8;

template <class Voxel, class Real>
struct GatherVoxels {
  FASTMED_HD static void run(const Voxel* __restrict row, const int32_t* __restrict index,
                             const Real* __restrict coverage, int64_t length, Real* __restrict sampled) {
    for (int64_t x = 0; x < length; ++x) sampled[x] = weighted(coverage[x], static_cast<Real>(row[index[x]]));
  }
};

template <class Real>
struct Uncover {
  FASTMED_HD static void run(Real row_coverage, const Real* __restrict coverage, int64_t length,
                             Real* __restrict uncovered) {
    for (int64_t x = 0; x < length; ++x) uncovered[x] = Real(1) - row_coverage * coverage[x];
  }
};

template <class Real, class Out>
struct Finish {
  FASTMED_HD static void run(const Real* __restrict sampled, const Real* __restrict uncovered,
                             Intensity<Real> intensity, int64_t length, Out* __restrict out) {
    if (uncovered) {
      for (int64_t x = 0; x < length; ++x) out[x] = convert<Out>(apply(intensity, sampled[x], uncovered[x]));
    } else {
      for (int64_t x = 0; x < length; ++x) out[x] = convert<Out>(apply(intensity, sampled[x], Real(0)));
    }
  }
};

// The arguments of one call, unpacked.
struct Request {
  std::vector<Tensor> volumes;
  ParameterRows matrix, scale, shift, window, fill;  // window and fill may be absent
  int64_t size[3];
  bool nearest;

  Matrix matrix_of(int64_t output) const { return read_matrix(matrix.row(output)); }
};

template <class Voxel>
VolumeView<Voxel> view_of(const Tensor& volume) {
  return {static_cast<const Voxel*>(volume.const_data_ptr()),
          volume.stride(0),
          volume.stride(1),
          {static_cast<int32_t>(volume.size(0)), static_cast<int32_t>(volume.size(1)),
           static_cast<int32_t>(volume.size(2))}};
}

// Fills rows of samples for one output after another, keeping what rows of one output share.
template <class Voxel, class Real>
class RowSampler {
 public:
  explicit RowSampler(const Request& request)
      : request_(request), length_(request.size[2]), taps_(length_), sampled_(RowInterpolator<Real>::padded(length_)),
        uncovered_(length_) {}

  const Real* sampled() const { return sampled_.data(); }
  const Real* uncovered() const { return request_.fill.present() ? uncovered_.data() : nullptr; }

  // True where rows of this output may be written without being sampled first.
  bool writes() const { return direct_; }

  void start(int64_t output, const Intensity<Real>& intensity) {
    direct_ = false;
    const int64_t source = request_.volumes.size() == 1 ? 0 : output;
    volume_ = view_of<Voxel>(request_.volumes[source]);
    matrix_ = request_.matrix_of(output);
    straight_ = keeps_rows(matrix_, request_.size, request_.nearest ? 0.0 : kPositionTolerance);
    if (!straight_) return;
    const double step = matrix_.rows[2][2], origin = matrix_.rows[2][3];
    for (int64_t x = 0; x < length_; ++x) {
      taps_.set(x, tap(origin + step * static_cast<double>(x), volume_.lengths[2]));
    }
    const auto [first, last] = taps_.range();
    taps_.move(-first);
    first_ = first;
    columns_ = last - first + 1;
    line_.resize(RowInterpolator<Real>::padded(columns_));
    if (request_.nearest) return;
    interpolator_.prepare(taps_);
    direct_ = std::is_integral_v<Voxel> && !request_.fill.present() && interpolator_.writes();
    if (direct_) interpolator_.prepare_writing(intensity);
  }

  // A row without fill and without numbers that are not finite, in the dtype of the arithmetic.
  void write(int64_t z, int64_t y, Real* out) {
    const auto [tap_z, tap_y] = row_taps(line_at(z, y));
    blend(tap_z, tap_y);
    interpolator_.write(line_.data(), out);
  }

  void sample(int64_t z, int64_t y) {
    const Line line = line_at(z, y);
    if (straight_) return sample_straight(line);
    const bool fill = request_.fill.present();
    if (request_.nearest) {
      fill ? run<SampleNearest<Voxel, Real, true>>(volume_, line, length_, sampled_.data(), uncovered_.data())
           : run<SampleNearest<Voxel, Real, false>>(volume_, line, length_, sampled_.data(), uncovered_.data());
    } else {
      fill ? run<SampleLinear<Voxel, Real, true>>(volume_, line, length_, sampled_.data(), uncovered_.data())
           : run<SampleLinear<Voxel, Real, false>>(volume_, line, length_, sampled_.data(), uncovered_.data());
    }
  }

 private:
  Line line_at(int64_t z, int64_t y) const {
    Line line;
    for (int axis = 0; axis < 3; ++axis) {
      line.start[axis] = row_start(matrix_, axis, static_cast<double>(z), static_cast<double>(y));
      line.step[axis] = matrix_.rows[axis][2];
    }
    return line;
  }

  std::pair<Tap<Real>, Tap<Real>> row_taps(const Line& line) const {
    return {tap(line.start[0], volume_.lengths[0]), tap(line.start[1], volume_.lengths[1])};
  }

  // Fills line_ from the rows around, which it returns the number of.
  int blend(const Tap<Real>& tap_z, const Tap<Real>& tap_y) {
    const Voxel* rows[4];
    Real weights[4];
    const Voxel* const origin = volume_.data + first_;
    const int count = neighbouring_rows(origin, volume_.stride_z, volume_.stride_y, tap_z, tap_y, rows, weights);
    for (int row = 0; row < count; ++row) prefetch(rows[row] + kRowsAhead * volume_.stride_y);
    if (count > 0) blend_rows(rows, weights, count, columns_, line_.data());
    return count;
  }

  // Rows are short and follow one another in many streams, more than the machine foresees by itself.
  void prefetch(const Voxel* row) const {
    constexpr int64_t kVoxelsPerLine = 64 / sizeof(Voxel);
    for (int64_t x = 0; x < columns_; x += kVoxelsPerLine) __builtin_prefetch(row + x);
  }

  Tap<Real> tap(double position, int32_t length) const {
    return tap_at<Real>(position, length, request_.nearest, request_.fill.present());
  }

  void sample_straight(const Line& line) {
    const auto [tap_z, tap_y] = row_taps(line);
    if (request_.nearest) {
      pick(tap_z, tap_y);
    } else if (blend(tap_z, tap_y) > 0) {
      interpolator_.interpolate(line_.data(), sampled_.data());
    } else {
      std::fill(sampled_.begin(), sampled_.end(), Real(0));
    }
    if (request_.fill.present()) {
      run<Uncover<Real>>(tap_z.coverage * tap_y.coverage, taps_.coverage.data(), length_, uncovered_.data());
    }
  }

  void pick(const Tap<Real>& tap_z, const Tap<Real>& tap_y) {
    if (tap_z.weight_low == Real(0) || tap_y.weight_low == Real(0)) {
      std::fill(sampled_.begin(), sampled_.end(), Real(0));
      return;
    }
    const Voxel* const row =
        volume_.data + first_ + tap_z.low * volume_.stride_z + tap_y.low * volume_.stride_y;
    run<GatherVoxels<Voxel, Real>>(row, taps_.low.data(), taps_.weight_low.data(), length_, sampled_.data());
  }

  const Request& request_;
  const int64_t length_;
  VolumeView<Voxel> volume_;
  Matrix matrix_;
  bool straight_;  // rows of output lie along rows of the volume
  bool direct_ = false;
  int64_t first_, columns_;  // what line_ holds of the volume's rows
  AxisTable<Real> taps_;
  RowInterpolator<Real> interpolator_;
  std::vector<Real> line_, sampled_, uncovered_;
};

template <class Real>
Intensity<Real> intensity_of(const Request& request, int64_t output) {
  return make_intensity<Real>(*request.scale.row(output), *request.shift.row(output), request.window.row(output),
                              request.fill.row(output));
}

// A row of samples becomes a row of output voxels of one dtype.
template <class Real>
using FinishRow = void (*)(const Real* sampled, const Real* uncovered, const Intensity<Real>& intensity,
                           int64_t length, void* out);

template <class Real, class Out>
void finish_row(const Real* sampled, const Real* uncovered, const Intensity<Real>& intensity, int64_t length,
                void* out) {
  run<Finish<Real, Out>>(sampled, uncovered, intensity, length, static_cast<Out*>(out));
}

template <class Voxel, class Real>
void resample(const Request& request, int64_t outputs, FinishRow<Real> finish, Tensor& out) {
  const auto [depth, height, width] = request.size;
  char* const data = static_cast<char*>(out.mutable_data_ptr());
  const int64_t row_bytes = width * static_cast<int64_t>(out.element_size());
  const bool own_dtype = out.scalar_type() == (std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float);
  const int64_t slabs = (depth + kRowsPerBundle - 1) / kRowsPerBundle;
  const auto fill_bundles = [&, depth = depth, height = height, width = width](int64_t begin, int64_t end) {
    RowSampler<Voxel, Real> sampler(request);
    Intensity<Real> intensity{};
    int64_t current = -1;
    for (int64_t bundle = begin; bundle < end; ++bundle) {
      const int64_t output = bundle / (slabs * height), y = bundle % height;
      if (output != current) {
        intensity = intensity_of<Real>(request, output);
        sampler.start(output, intensity);
        current = output;
      }
      const int64_t first = bundle / height % slabs * kRowsPerBundle;
      for (int64_t z = first; z < std::min(first + kRowsPerBundle, depth); ++z) {
        char* const row = data + ((output * depth + z) * height + y) * row_bytes;
        if (own_dtype && sampler.writes()) {
          sampler.write(z, y, reinterpret_cast<Real*>(row));
        } else {
          sampler.sample(z, y);
          finish(sampler.sampled(), sampler.uncovered(), intensity, width, row);
        }
      }
    }
  };
  const int64_t grain = std::max<int64_t>(1, kVoxelsPerTask / (kRowsPerBundle * width));
  torch::stable::parallel_for(0, outputs * slabs * height, grain, fill_bundles);
}

// Whether every output is a straight grid that planes serve well.
template <class Voxel, class Real>
bool suits_planes(const Request& request, int64_t outputs, ScalarType dtype) {
  const ScalarType own = std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float;
  if (dtype != own || request.nearest || request.fill.present()) return false;
  for (int64_t output = 0; output < outputs; ++output) {
    const Matrix matrix = request.matrix_of(output);
    const Tensor& volume = request.volumes[request.volumes.size() == 1 ? 0 : output];
    if (!is_axis_aligned(matrix, request.size, kPositionTolerance)) return false;
    if (!PlaneSampler<Voxel, Real>::pays(matrix, request.size, static_cast<int32_t>(volume.size(0)))) return false;
  }
  return true;
}

template <class Voxel, class Real>
void resample_by_planes(const Request& request, int64_t outputs, Tensor& out) {
  const auto [depth, height, width] = request.size;
  Real* const data = static_cast<Real*>(out.mutable_data_ptr());
  const bool stream = out.numel() * static_cast<int64_t>(sizeof(Real)) >= kStreamedBytes;
  const int64_t most = PlaneSampler<Voxel, Real>::tile_rows(width);
  const int64_t tiles = (height + most - 1) / most;
  const int64_t rows = (height + tiles - 1) / tiles;
  const auto fill_tiles = [&, depth = depth, height = height, width = width](int64_t begin, int64_t end) {
    PlaneSampler<Voxel, Real> sampler;
    int64_t current = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t z = task % depth, first = task / depth % tiles * rows, output = task / (depth * tiles);
      if (output != current) {
        const int64_t source = request.volumes.size() == 1 ? 0 : output;
        sampler.start(view_of<Voxel>(request.volumes[source]), request.matrix_of(output), request.size,
                      intensity_of<Real>(request, output));
        current = output;
      }
      Real* const tile = data + ((output * depth + z) * height + first) * width;
      sampler.write(z, first, std::min(first + rows, height), stream, tile);
    }
    if (stream) finish_streaming();
  };
  const int64_t grain = std::max<int64_t>(1, kVoxelsPerTask / (rows * width));
  torch::stable::parallel_for(0, outputs * tiles * depth, grain, fill_tiles);
}

template <class Real>
void resample_as(const Request& request, int64_t outputs, Tensor& out) {
  const FinishRow<Real> finish = for_voxel_dtype(
      out.scalar_type(), "dtype", []<class Out>() -> FinishRow<Real> { return finish_row<Real, Out>; });
  for_voxel_dtype(request.volumes[0].scalar_type(), "volume", [&]<class Voxel>() {
    if constexpr (std::is_same_v<Real, double> || !(std::is_same_v<Voxel, double> || std::is_same_v<Voxel, int32_t>)) {
      if constexpr (std::is_integral_v<Voxel>) {
        if (suits_planes<Voxel, Real>(request, outputs, out.scalar_type())) {
          return resample_by_planes<Voxel, Real>(request, outputs, out);
        }
      }
      resample<Voxel, Real>(request, outputs, finish, out);
    }
  });
}

Tensor window_resample(std::vector<Tensor> volumes, Tensor matrix, std::vector<int64_t> size, Tensor scale,
                       Tensor shift, std::optional<Tensor> window, std::optional<Tensor> fill, bool nearest,
                       ScalarType dtype) {
  const int64_t outputs = check_window_resample(volumes, matrix, size, scale, shift, window, fill, nearest, dtype);
  Tensor out = new_result(volumes[0], {outputs, size[0], size[1], size[2]}, dtype);
  const Request request{volumes,
                        ParameterRows(matrix),
                        ParameterRows(scale),
                        ParameterRows(shift),
                        ParameterRows(window),
                        ParameterRows(fill),
                        {size[0], size[1], size[2]},
                        nearest};
  needs_double(volumes[0].scalar_type(), dtype) ? resample_as<double>(request, outputs, out)
                                                : resample_as<float>(request, outputs, out);
  return out;
}

}  // namespace
}  // namespace fastmed

STABLE_TORCH_LIBRARY_IMPL(fastmed, CPU, m) {
  m.impl("window_resample", TORCH_BOX(&fastmed::window_resample));
}
