// Runs the fuzzers' target without a fuzzer: each given file, then mutations of it from a fixed seed.
// replay MUTATIONS FILE...
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "host/fuzz/target.h"

namespace {

using Bytes = std::vector<uint8_t>;

// One to four changes: a byte, a length of all ones, a piece cut out, the end cut off, a piece said twice.
Bytes mutated(Bytes bytes, std::mt19937& random) {
  for (int changes = 1 + static_cast<int>(random() % 4); changes > 0 && !bytes.empty(); --changes) {
    const auto at = static_cast<std::ptrdiff_t>(random() % bytes.size());
    const auto count = static_cast<std::ptrdiff_t>(std::min<size_t>(random() % 24, bytes.size() - at));
    const auto place = bytes.begin() + at;
    switch (random() % 5) {
      case 0: *place = static_cast<uint8_t>(random()); break;
      case 1: std::fill_n(place, std::min<std::ptrdiff_t>(count, 4), 0xFF); break;
      case 2: bytes.erase(place, place + count); break;
      case 3: bytes.resize(static_cast<size_t>(at)); break;
      default: {
        const Bytes piece(place, place + count);
        bytes.insert(place, piece.begin(), piece.end());
      }
    }
  }
  return bytes;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s MUTATIONS FILE...\n", arguments[0]);
    return 2;
  }
  const int mutations = std::atoi(arguments[1]);
  std::mt19937 random(1);
  for (int k = 2; k < count; ++k) {
    std::ifstream file(arguments[k], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s cannot be opened\n", arguments[k]);
      return 1;
    }
    const Bytes bytes{std::istreambuf_iterator<char>(file), {}};
    fastmed::host::read_as_dicom(bytes.data(), bytes.size());
    for (int turn = 0; turn < mutations; ++turn) {
      const Bytes other = mutated(bytes, random);
      fastmed::host::read_as_dicom(other.data(), other.size());
    }
  }
  std::printf("%d files, %d mutations of each: no finding\n", count - 2, mutations);
  return 0;
}
