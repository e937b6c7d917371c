// Interpolation along a row of numbers at positions that are the same for every row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/rows.h"
#include "cpu/simd.h"
#include "math/sampling.h"

namespace fastmed {

template <class Real>
struct GatherPairs {
  FASTMED_HD static void run(const Real* __restrict line, AxisTaps<Real> taps, int64_t length,
                             Real* __restrict sampled) {
    const int32_t* __restrict low = taps.low;
    const int32_t* __restrict high = taps.high;
    const Real* __restrict weight_low = taps.weight_low;
    const Real* __restrict weight_high = taps.weight_high;
    for (int64_t x = 0; x < length; ++x) {
      sampled[x] = weighted(weight_low[x], line[low[x]]) + weighted(weight_high[x], line[high[x]]);
    }
  }
};

// A register of kBytes of numbers, and the indices that shuffle two of them.
template <class Real, int kBytes>
struct Lanes {
  using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  typedef Real Vector __attribute__((vector_size(kBytes)));
  typedef Index Indices __attribute__((vector_size(kBytes)));
  static constexpr int kCount = kBytes / static_cast<int>(sizeof(Real));
};

// What PermutePairs reads for each block of outputs: where its neighbours start, and which of them each takes.
template <class Real, int kBytes>
struct PermuteTable {
  using Index = typename Lanes<Real, kBytes>::Index;
  const int32_t* start;
  const Index *low, *high;
  const Real *weight_low, *weight_high;
};

// Neighbours of consecutive outputs lie close together, so shuffles of a few registers replace gathers from memory.
// Reads kRegisters registers from each block's start; arrays of the table and sampled hold whole blocks.
template <class Real, int kBytes, int kRegisters>
struct PermutePairs {
  using Table = PermuteTable<Real, kBytes>;

  FASTMED_HD static void run(const Real* __restrict line, Table table, int64_t blocks, Real* __restrict sampled) {
    using Vector = typename Lanes<Real, kBytes>::Vector;
    using Indices = typename Lanes<Real, kBytes>::Indices;
    constexpr int kCount = Lanes<Real, kBytes>::kCount;
    const Vector zero = {};
    for (int64_t block = 0; block < blocks; ++block) {
      Vector near[kRegisters], weight_low, weight_high, at_low, at_high;
      Indices low, high;
      for (int i = 0; i < kRegisters; ++i) {  // all at once would go by way of memory
        std::memcpy(&near[i], line + table.start[block] + i * kCount, kBytes);
      }
      std::memcpy(&low, table.low + block * kCount, kBytes);
      std::memcpy(&high, table.high + block * kCount, kBytes);
      std::memcpy(&weight_low, table.weight_low + block * kCount, kBytes);
      std::memcpy(&weight_high, table.weight_high + block * kCount, kBytes);
      at_low = __builtin_shuffle(near[0], near[1], low);
      at_high = __builtin_shuffle(near[0], near[1], high);
      if constexpr (kRegisters == 4) {
        at_low = low < 2 * kCount ? at_low : __builtin_shuffle(near[2], near[3], low);
        at_high = high < 2 * kCount ? at_high : __builtin_shuffle(near[2], near[3], high);
      }
      const Vector part_low = weight_low == zero ? zero : weight_low * at_low;
      const Vector part_high = weight_high == zero ? zero : weight_high * at_high;
      const Vector sum = part_low + part_high;
      std::memcpy(sampled + block * kCount, &sum, kBytes);
    }
  }
};

// PermutePairs that ends in output: the weights hold the gain, the higher neighbour follows the lower, and every number
// of the line is finite.
template <class Real, int kBytes, int kRegisters, bool kClamped>
struct PermuteFinish {
  using Table = PermuteTable<Real, kBytes>;

  FASTMED_HD static void run(const Real* __restrict line, Table table, Real bias, int64_t blocks,
                             Real* __restrict out) {
    using Vector = typename Lanes<Real, kBytes>::Vector;
    using Indices = typename Lanes<Real, kBytes>::Indices;
    constexpr int kCount = Lanes<Real, kBytes>::kCount;
    const Vector zero = {}, one = zero + Real(1);
    for (int64_t block = 0; block < blocks; ++block) {
      Vector near[kRegisters], weight_low, weight_high;
      Indices low;
      for (int i = 0; i < kRegisters; ++i) {  // all at once would go by way of memory
        std::memcpy(&near[i], line + table.start[block] + i * kCount, kBytes);
      }
      std::memcpy(&low, table.low + block * kCount, kBytes);
      std::memcpy(&weight_low, table.weight_low + block * kCount, kBytes);
      std::memcpy(&weight_high, table.weight_high + block * kCount, kBytes);
      const Indices high = low + 1;
      Vector at_low = __builtin_shuffle(near[0], near[1], low), at_high = __builtin_shuffle(near[0], near[1], high);
      if constexpr (kRegisters == 4) {
        at_low = low < 2 * kCount ? at_low : __builtin_shuffle(near[2], near[3], low);
        at_high = high < 2 * kCount ? at_high : __builtin_shuffle(near[2], near[3], high);
      }
      Vector value;
      for (int lane = 0; lane < kCount; ++lane) {
        value[lane] = std::fma(weight_low[lane], at_low[lane], std::fma(weight_high[lane], at_high[lane], bias));
      }
      if constexpr (kClamped) {
        value = value > zero ? value : zero;
        value = value < one ? value : one;
      }
      std::memcpy(out + block * kCount, &value, kBytes);
    }
  }
};

// Interpolates line after line at the positions of one AxisTable, by whichever way the machine and the positions allow.
template <class Real>
class RowInterpolator {
 public:
  static constexpr int64_t kPadding = 4 * 64 / sizeof(Real);  // what a line must hold beyond its last number

  void prepare(const AxisTable<Real>& taps) {
    taps_ = taps.pointers();
    length_ = static_cast<int64_t>(taps.low.size());
    way_ = Way::kGather;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    if (instruction_set == InstructionSet::kAvx512) {
      prepare_blocks<64>(wide_);
    } else if (instruction_set == InstructionSet::kAvx2) {
      prepare_blocks<32>(narrow_);
    }
#endif
  }

  static int64_t padded(int64_t length) { return length + kPadding; }

  void interpolate(const Real* line, Real* sampled) const {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    switch (way_) {
      case Way::kWide2: return run_avx512<PermutePairs<Real, 64, 2>>(line, table(wide_), blocks_, sampled);
      case Way::kWide4: return run_avx512<PermutePairs<Real, 64, 4>>(line, table(wide_), blocks_, sampled);
      case Way::kNarrow2: return run_avx2<PermutePairs<Real, 32, 2>>(line, table(narrow_), blocks_, sampled);
      case Way::kNarrow4: return run_avx2<PermutePairs<Real, 32, 4>>(line, table(narrow_), blocks_, sampled);
      case Way::kGather: break;
    }
#endif
    run<GatherPairs<Real>>(line, taps_, length_, sampled);
  }

  // Whether lines may go straight to output; their numbers must be finite, with kPadding of them beyond the last.
  bool writes() const { return way_ != Way::kGather; }

  void prepare_writing(const Intensity<Real>& intensity) {
    scaled_low_ = weight_low_;
    scaled_high_ = weight_high_;
    for (Real& weight : scaled_low_) weight *= intensity.gain;
    for (Real& weight : scaled_high_) weight *= intensity.gain;
    bias_ = intensity.bias;
    clamped_ = intensity.clamped;
    last_.resize(64 / sizeof(Real));
  }

  void write([[maybe_unused]] const Real* line, [[maybe_unused]] Real* out) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    switch (way_) {
      case Way::kWide2: return write_blocks<64, 2>(line, wide_, out);
      case Way::kWide4: return write_blocks<64, 4>(line, wide_, out);
      case Way::kNarrow2: return write_blocks<32, 2>(line, narrow_, out);
      case Way::kNarrow4: return write_blocks<32, 4>(line, narrow_, out);
      case Way::kGather: break;
    }
#endif
  }

 private:
  enum class Way { kGather, kWide2, kWide4, kNarrow2, kNarrow4 };

  template <int kBytes>
  struct Blocks {
    std::vector<typename Lanes<Real, kBytes>::Index> low, high;
  };

  template <int kBytes>
  PermuteTable<Real, kBytes> table(const Blocks<kBytes>& blocks) const {
    return {start_.data(), blocks.low.data(), blocks.high.data(), weight_low_.data(), weight_high_.data()};
  }

  template <int kBytes>
  void prepare_blocks(Blocks<kBytes>& indices) {
    constexpr int kCount = Lanes<Real, kBytes>::kCount;
    blocks_ = (length_ + kCount - 1) / kCount;
    const int64_t whole = blocks_ * kCount;
    start_.resize(blocks_);
    indices.low.assign(whole, 0);
    indices.high.assign(whole, 0);
    weight_low_.assign(whole, Real(0));
    weight_high_.assign(whole, Real(0));
    std::copy_n(taps_.weight_low, length_, weight_low_.begin());
    std::copy_n(taps_.weight_high, length_, weight_high_.begin());
    int32_t reach = 0;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int64_t first = block * kCount, last = std::min(first + kCount, length_);
      start_[block] = *std::min_element(taps_.low + first, taps_.low + last);
      for (int64_t x = first; x < last; ++x) {
        indices.low[x] = taps_.low[x] - start_[block];
        indices.high[x] = taps_.high[x] - start_[block];
        reach = std::max(reach, taps_.high[x] - start_[block] + 1);
      }
    }
    if (reach <= 2 * kCount) {
      way_ = kBytes == 64 ? Way::kWide2 : Way::kNarrow2;
    } else if (reach <= 4 * kCount) {
      way_ = kBytes == 64 ? Way::kWide4 : Way::kNarrow4;
    }
  }

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  template <int kBytes, int kRegisters>
  void write_blocks(const Real* line, const Blocks<kBytes>& indices, Real* out) {
    constexpr int64_t kCount = Lanes<Real, kBytes>::kCount;
    PermuteTable<Real, kBytes> blocks{start_.data(), indices.low.data(), indices.high.data(), scaled_low_.data(),
                                      scaled_high_.data()};
    const int64_t whole = length_ / kCount;
    run_blocks<kBytes, kRegisters>(line, blocks, whole, out);
    if (whole == blocks_) return;
    blocks.start += whole;
    blocks.low += whole * kCount;
    blocks.weight_low += whole * kCount;
    blocks.weight_high += whole * kCount;
    run_blocks<kBytes, kRegisters>(line, blocks, 1, last_.data());
    std::copy_n(last_.data(), length_ - whole * kCount, out + whole * kCount);
  }

  template <int kBytes, int kRegisters>
  void run_blocks(const Real* line, const PermuteTable<Real, kBytes>& table, int64_t blocks, Real* out) const {
    clamped_ ? run_on<PermuteFinish<Real, kBytes, kRegisters, true>, kBytes>(line, table, bias_, blocks, out)
             : run_on<PermuteFinish<Real, kBytes, kRegisters, false>, kBytes>(line, table, bias_, blocks, out);
  }

  template <class Kernel, int kBytes, class... Args>
  static void run_on(Args... args) {
    if constexpr (kBytes == 64) {
      run_avx512<Kernel>(args...);
    } else {
      run_avx2<Kernel>(args...);
    }
  }
#endif

  Way way_ = Way::kGather;
  AxisTaps<Real> taps_{};
  int64_t length_ = 0, blocks_ = 0;
  std::vector<int32_t> start_;
  std::vector<Real> weight_low_, weight_high_;
  std::vector<Real> scaled_low_, scaled_high_, last_;  // of write
  Real bias_ = 0;
  bool clamped_ = false;
  Blocks<64> wide_;
  Blocks<32> narrow_;
};

}  // namespace fastmed
