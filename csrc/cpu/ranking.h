// Boxes by falling score and, where there are groups, each group's boxes together: a stable radix sort.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace fastmed {

template <class Key>
struct Ranked {
  Key key;
  int32_t index;
};

// Memory that is written before it is read: to clear it first would touch every page once more.
template <class Value>
using Buffer = std::unique_ptr<Value[]>;

template <class Value>
Buffer<Value> new_buffer(int64_t count) {
  return std::make_unique_for_overwrite<Value[]>(count);
}

// Equal parts of a row of values, the same ones for any number of threads.
class Parts {
 public:
  explicit Parts(int64_t count)
      : count_(count), parts_(std::clamp<int64_t>(count / kLeast, 1, kMost)), length_((count + parts_ - 1) / parts_) {}

  int64_t parts() const { return parts_; }

  // Calls body(part, begin, end).
  template <class Body>
  void each(const Body& body) const {
    torch::stable::parallel_for(0, parts_, 1, [&](int64_t from, int64_t to) {
      for (int64_t part = from; part < to; ++part) {
        body(part, std::min(part * length_, count_), std::min((part + 1) * length_, count_));
      }
    });
  }

 private:
  static constexpr int64_t kLeast = 8192, kMost = 8;
  int64_t count_, parts_, length_;
};

// Entries and room for as many, which a sort swaps.
template <class Key>
struct RankedRow {
  int64_t count;
  Buffer<Ranked<Key>> entries, spare;

  explicit RankedRow(int64_t length)
      : count(length), entries(new_buffer<Ranked<Key>>(length)), spare(new_buffer<Ranked<Key>>(length)) {}
};

// By rising key, of which only the lowest bits are set; equal keys stay in place.
template <class Key>
void sort_by_key(RankedRow<Key>& row, int bits) {
  constexpr int kMostDigitBits = 11;
  const int digits = (bits + kMostDigitBits - 1) / kMostDigitBits;
  const int digit_bits = digits > 0 ? (bits + digits - 1) / digits : 0;
  const int64_t values = int64_t{1} << digit_bits;
  const Parts parts(row.count);
  std::vector<int32_t> places(parts.parts() * values);
  for (int shift = 0; shift < bits; shift += digit_bits) {
    const auto digit = [&](const Ranked<Key>& entry) { return entry.key >> shift & static_cast<Key>(values - 1); };
    parts.each([&](int64_t part, int64_t begin, int64_t end) {
      int32_t* const own = places.data() + part * values;
      std::fill(own, own + values, 0);
      for (int64_t i = begin; i < end; ++i) ++own[digit(row.entries[i])];
    });
    int32_t next = 0;
    for (int64_t value = 0; value < values; ++value) {
      for (int64_t part = 0; part < parts.parts(); ++part) {
        next += std::exchange(places[part * values + value], next);
      }
    }
    parts.each([&](int64_t part, int64_t begin, int64_t end) {
      int32_t* const own = places.data() + part * values;
      for (int64_t i = begin; i < end; ++i) row.spare[own[digit(row.entries[i])]++] = row.entries[i];
    });
    std::swap(row.entries, row.spare);
  }
}

// An integer that rises where the score falls; the same for zeros of either sign, the highest for NaN.
template <class Score>
auto falling_key(Score score) {
  using Key = std::conditional_t<sizeof(Score) == 8, uint64_t, uint32_t>;
  if (score != score) return ~Key{0};
  constexpr Key sign = Key{1} << (8 * sizeof(Key) - 1);
  const Key key = std::bit_cast<Key>(score + Score(0));
  return key & sign ? key : static_cast<Key>(~key & ~sign);
}

// Indices by falling score, equal scores in place; NaN stands at the end. The keys say nothing.
template <class Score>
RankedRow<uint32_t> rank_by_score(const Score* scores, int64_t count) {
  using Key = decltype(falling_key(Score()));
  const Parts parts(count);
  RankedRow<Key> row(count);
  parts.each([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row.entries[i] = {falling_key(scores[i]), static_cast<int32_t>(i)};
  });
  sort_by_key(row, 8 * sizeof(Key));
  if constexpr (sizeof(Key) == 4) {
    return row;
  } else {
    RankedRow<uint32_t> narrow(count);
    for (int64_t i = 0; i < count; ++i) narrow.entries[i] = {0, row.entries[i].index};
    return narrow;
  }
}

// Brings each group's boxes together, in the order that they have. Then those of a group have equal keys.
inline void gather_groups(RankedRow<uint32_t>& row, const int64_t* groups) {
  const Parts parts(row.count);
  std::vector<std::pair<int64_t, int64_t>> ranges(parts.parts(), {groups[0], groups[0]});
  parts.each([&](int64_t part, int64_t begin, int64_t end) {
    auto [least, most] = ranges[part];
    for (int64_t i = begin; i < end; ++i) {
      least = std::min(least, groups[i]);
      most = std::max(most, groups[i]);
    }
    ranges[part] = {least, most};
  });
  auto [least, most] = ranges[0];
  for (const auto& range : ranges) {
    least = std::min(least, range.first);
    most = std::max(most, range.second);
  }
  const auto offset = [first = static_cast<uint64_t>(least)](int64_t group) {
    return static_cast<uint64_t>(group) - first;
  };
  const int bits = std::bit_width(offset(most));
  if (bits <= 32) {
    parts.each([&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        row.entries[i].key = static_cast<uint32_t>(offset(groups[row.entries[i].index]));
      }
    });
    sort_by_key(row, bits);
    return;
  }
  RankedRow<uint64_t> wide(row.count);
  for (int64_t i = 0; i < row.count; ++i) {
    wide.entries[i] = {offset(groups[row.entries[i].index]), row.entries[i].index};
  }
  sort_by_key(wide, bits);
  uint32_t number = 0;
  for (int64_t i = 0; i < row.count; ++i) {
    number += i > 0 && wide.entries[i].key != wide.entries[i - 1].key;
    row.entries[i] = {number, wide.entries[i].index};
  }
}

}  // namespace fastmed
