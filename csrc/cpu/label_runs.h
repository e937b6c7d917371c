// Runs of equal pairs of byte labels: finds where they end, and lists them.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>

#include "cpu/simd.h"

namespace fastmed {

constexpr int64_t kBlock = 1 << 13;  // voxels whose runs are found at once; both maps stay in the nearest cache
constexpr int64_t kWord = 64;        // voxels per word of ends

// Each run's labels and length, for machines that compress vectors. A run longer than two words is listed in parts, so
// that a byte holds any length. Other machines list the ends alone.
struct Runs {
  alignas(64) uint8_t prediction[kBlock + kWord];
  alignas(64) uint8_t target[kBlock + kWord];
  alignas(64) uint8_t length[kBlock + kWord];
  alignas(64) uint8_t last[kBlock + kWord];  // the position of its last voxel, modulo 256
  uint16_t ends[kBlock + kWord];
};

// Into the second cache; left to itself the machine would fetch a block while it waits for it. Never faults.
FASTMED_HD void ask_for_next_block([[maybe_unused]] const uint8_t* prediction, [[maybe_unused]] const uint8_t* target) {
#ifdef __GNUC__
  __builtin_prefetch(prediction + kBlock, 0, 2);
  __builtin_prefetch(target + kBlock, 0, 2);
#endif
}

// Bit i of ends tells whether the pair of labels i differs from the pair after it, which must be readable.
using FindEnds = void (*)(const uint8_t* prediction, const uint8_t* target, int64_t words, uint64_t* ends);

// Lists the runs, all but their lengths, and returns how many they are. As many whole words as hold the labels must be
// readable, and one label beyond.
using ListRuns = int64_t (*)(const uint8_t* prediction, const uint8_t* target, int64_t length, Runs* runs);

inline int64_t words_of(int64_t length) { return (length + kWord - 1) / kWord; }

// Ends a run at every second word's end.
FASTMED_HD uint64_t divided(uint64_t ends, int64_t word) {
  return ends | static_cast<uint64_t>(word & 1) << (kWord - 1);
}

// The ends of the last word: one where the labels end, none behind.
FASTMED_HD uint64_t closed(uint64_t ends, int64_t length) {
  const int64_t last = (length - 1) % kWord;
  return (ends | uint64_t{1} << last) & ~uint64_t{0} >> (kWord - 1 - last);
}

inline void find_ends_portable(const uint8_t* prediction, const uint8_t* target, int64_t words, uint64_t* ends) {
  for (int64_t word = 0; word < words; ++word) {
    uint64_t bits = 0;
    for (int64_t byte = 0; byte < kWord; byte += 8) {
      const int64_t i = word * kWord + byte;
      uint64_t now[2], after[2];
      std::memcpy(&now[0], prediction + i, 8);
      std::memcpy(&now[1], target + i, 8);
      std::memcpy(&after[0], prediction + i + 1, 8);
      std::memcpy(&after[1], target + i + 1, 8);
      const uint64_t differs = (now[0] ^ after[0]) | (now[1] ^ after[1]);
      constexpr uint64_t kLow7 = 0x7f7f7f7f7f7f7f7full;
      const uint64_t nonzero = (((differs & kLow7) + kLow7) | differs) >> 7 & 0x0101010101010101ull;
      bits |= (nonzero * 0x0102040810204080ull) >> 56 << byte;  // eight flags, one per byte, into eight bits
    }
    ends[word] = bits;
  }
}

// Positions of the set bits. Four at a time are written whether set or not, for a branch per bit would be mispredicted.
struct ListPositions {
  FASTMED_HD static void run(const uint8_t* prediction, const uint8_t* target, const uint64_t* __restrict ends,
                             int64_t words, uint16_t* __restrict positions, int64_t* listed) {
    int64_t first = 0;
    for (int64_t word = 0; word < words; ++word) {
      ask_for_next_block(prediction + word * kWord, target + word * kWord);
      uint64_t bits = ends[word];
      const int64_t count = std::popcount(bits);
      for (int64_t done = 0; done < count; done += 4) {
        for (int64_t i = 0; i < 4; ++i) {
          positions[first + done + i] = static_cast<uint16_t>(word * kWord + std::countr_zero(bits));
          bits &= bits - 1;
        }
      }
      first += count;
    }
    *listed = first;
  }
};

// The position of each run's last voxel, where there is no ListRuns; reads and returns what that does.
inline int64_t list_ends(FindEnds find_ends, const uint8_t* prediction, const uint8_t* target, int64_t length,
                         uint16_t* positions) {
  uint64_t ends[kBlock / kWord];
  const int64_t words = words_of(length);
  find_ends(prediction, target, words, ends);
  ends[words - 1] = closed(ends[words - 1], length);
  int64_t listed = 0;
  run<ListPositions>(prediction, target, static_cast<const uint64_t*>(ends), words, positions, &listed);
  return listed;
}

#ifdef FASTMED_AVX2
FASTMED_AVX2 inline uint32_t equal_avx2(const uint8_t* labels) {
  const __m256i now = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(labels));
  const __m256i after = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(labels + 1));
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(now, after)));
}

FASTMED_AVX2 inline void find_ends_avx2(const uint8_t* prediction, const uint8_t* target, int64_t words,
                                        uint64_t* ends) {
  for (int64_t word = 0; word < words; ++word) {
    const int64_t i = word * kWord;
    const uint64_t low = equal_avx2(prediction + i) & equal_avx2(target + i);
    const uint64_t high = equal_avx2(prediction + i + 32) & equal_avx2(target + i + 32);
    ends[word] = ~(high << 32 | low);
  }
}

FASTMED_AVX512 inline uint64_t differs_avx512(const uint8_t* labels) {
  return _mm512_cmpneq_epu8_mask(_mm512_loadu_si512(labels), _mm512_loadu_si512(labels + 1));
}

FASTMED_AVX512 inline void find_ends_avx512(const uint8_t* prediction, const uint8_t* target, int64_t words,
                                            uint64_t* ends) {
  for (int64_t word = 0; word < words; ++word) {
    ends[word] = differs_avx512(prediction + word * kWord) | differs_avx512(target + word * kWord);
  }
}

#define FASTMED_AVX512_VBMI2 \
  __attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2")))

// A whole word's runs move together; what lies behind them is written over by the next word's.
FASTMED_AVX512_VBMI2 inline int64_t list_runs_vbmi2(const uint8_t* prediction, const uint8_t* target, int64_t length,
                                                    Runs* runs) {
  alignas(64) uint8_t first_positions[kWord];
  for (int64_t i = 0; i < kWord; ++i) first_positions[i] = static_cast<uint8_t>(i);
  __m512i positions = _mm512_load_si512(first_positions);
  int64_t listed = 0;
  const int64_t words = words_of(length);
  for (int64_t word = 0; word < words; ++word) {
    const uint8_t* const predicted = prediction + word * kWord;
    const uint8_t* const wanted = target + word * kWord;
    uint64_t ends = divided(differs_avx512(predicted) | differs_avx512(wanted), word);
    if (word == words - 1) ends = closed(ends, length);
    ask_for_next_block(predicted, wanted);
    _mm512_storeu_si512(runs->prediction + listed, _mm512_maskz_compress_epi8(ends, _mm512_loadu_si512(predicted)));
    _mm512_storeu_si512(runs->target + listed, _mm512_maskz_compress_epi8(ends, _mm512_loadu_si512(wanted)));
    _mm512_storeu_si512(runs->last + listed, _mm512_maskz_compress_epi8(ends, positions));
    positions = _mm512_add_epi8(positions, _mm512_set1_epi8(kWord));
    listed += std::popcount(ends);
  }
  return listed;
}
#endif

struct MeasureRuns {
  FASTMED_HD static void run(const uint8_t* __restrict last, int64_t count, uint8_t* __restrict length) {
    length[0] = static_cast<uint8_t>(last[0] + 1);
    for (int64_t i = 1; i < count; ++i) length[i] = static_cast<uint8_t>(last[i] - last[i - 1]);
  }
};

// How this machine finds runs, and from how many in a block on other ways of counting are faster.
struct RunFinder {
  FindEnds find_ends;
  ListRuns list_runs;  // null where list_ends is faster
  int64_t noisy;       // runs above which voxels are counted one by one
  int64_t two_classes, further_class;  // runs above which they are counted class by class

  bool prefers_classes(int64_t runs, int64_t num_classes) const {
    return runs > two_classes + further_class * (num_classes > 2 ? num_classes - 2 : 0);
  }
};

inline RunFinder run_finder_for_this_machine() {
#ifdef FASTMED_AVX2
  if (instruction_set == InstructionSet::kAvx512) {
    if (__builtin_cpu_supports("avx512vbmi2")) return {find_ends_avx512, list_runs_vbmi2, kBlock / 2, 0, 480};
    return {find_ends_avx512, nullptr, kBlock / 4, 200, 100};
  }
  if (instruction_set == InstructionSet::kAvx2) return {find_ends_avx2, nullptr, kBlock / 4, 200, 100};
#endif
  return {find_ends_portable, nullptr, kBlock / 4, 200, 100};
}

// Estimated by every fifteenth word, so that they do not all lie in one column of an image.
inline int64_t estimated_runs(const RunFinder& finder, const uint8_t* prediction, const uint8_t* target) {
  constexpr int64_t kStep = 15;
  int64_t runs = 0, words = 0;
  for (int64_t word = 0; word < kBlock / kWord - 1; word += kStep, ++words) {
    uint64_t ends;
    finder.find_ends(prediction + word * kWord, target + word * kWord, 1, &ends);
    runs += std::popcount(ends);
  }
  return runs * (kBlock / kWord) / words;
}

}  // namespace fastmed
