// Boxes as structure of arrays, so that one box meets a vector of others at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include "math/box.h"

namespace fastmed {

// Boxes met at a time: one AVX-512 register of float32.
constexpr int kLanes = 16;

inline int64_t whole_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Pointers into the columns of BoxColumns, moved to the first box in question.
template <class Real, int kAxes>
struct BoxPointers {
  const Real* low[kAxes];
  const Real* high[kAxes];
  const Real* volumes;

  FASTMED_HD Box<Real, kAxes> box(int64_t index) const {
    Box<Real, kAxes> result;
    for (int axis = 0; axis < kAxes; ++axis) {
      result.low[axis] = low[axis][index];
      result.high[axis] = high[axis][index];
    }
    return result;
  }
};

// Memory for a std::vector, from where a cache line begins: a vector of lanes that straddles two takes twice as long.
template <class Real>
struct LineAllocator {
  static constexpr std::align_val_t kLine{64};
  using value_type = Real;

  LineAllocator() = default;
  template <class Other>
  LineAllocator(const LineAllocator<Other>&) {}
  Real* allocate(std::size_t count) { return static_cast<Real*>(::operator new(count * sizeof(Real), kLine)); }
  void deallocate(Real* values, std::size_t) { ::operator delete(values, kLine); }
  friend bool operator==(LineAllocator, LineAllocator) { return true; }
};

// Room for a number of boxes, rounded up to whole lanes; places never set overlap nothing and suppress nothing.
template <class Real, int kAxes>
class BoxColumns {
 public:
  BoxColumns() = default;
  explicit BoxColumns(int64_t count) { clear(count); }

  void clear(int64_t count) {
    room_ = whole_lanes(count);
    values_.resize(room_ * (2 * kAxes + 1));
    const Real infinity = std::numeric_limits<Real>::infinity();
    std::fill(values_.begin(), values_.begin() + kAxes * room_, infinity);
    std::fill(values_.begin() + kAxes * room_, values_.begin() + 2 * kAxes * room_, -infinity);
    std::fill(values_.begin() + 2 * kAxes * room_, values_.end(), std::numeric_limits<Real>::quiet_NaN());
  }

  void set(int64_t index, const Box<Real, kAxes>& box) {
    for (int axis = 0; axis < kAxes; ++axis) {
      values_[axis * room_ + index] = box.low[axis];
      values_[(kAxes + axis) * room_ + index] = box.high[axis];
    }
    values_[2 * kAxes * room_ + index] = volume(box);
  }

  // Makes the box at index large enough to hold another.
  void extend(int64_t index, const Box<Real, kAxes>& box) {
    for (int axis = 0; axis < kAxes; ++axis) {
      Real& low = values_[axis * room_ + index];
      Real& high = values_[(kAxes + axis) * room_ + index];
      low = smaller(low, box.low[axis]);
      high = larger(high, box.high[axis]);
    }
  }

  int64_t room() const { return room_; }

  BoxPointers<Real, kAxes> pointers() const {
    BoxPointers<Real, kAxes> result;
    for (int axis = 0; axis < kAxes; ++axis) {
      result.low[axis] = values_.data() + axis * room_;
      result.high[axis] = values_.data() + (kAxes + axis) * room_;
    }
    result.volumes = values_.data() + 2 * kAxes * room_;
    return result;
  }

 private:
  int64_t room_ = 0;
  std::vector<Real, LineAllocator<Real>> values_;
};

}  // namespace fastmed
