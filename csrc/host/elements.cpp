// DICOM data elements: one at an offset, and the way over a sequence of undefined length.
#include "host/elements.h"

#include <algorithm>
#include <array>

namespace fastmed::host {
namespace {

constexpr std::array kLongVrs = {vr_code("OB"), vr_code("OD"), vr_code("OF"), vr_code("OL"), vr_code("OV"),
                                 vr_code("OW"), vr_code("SQ"), vr_code("SV"), vr_code("UC"), vr_code("UN"),
                                 vr_code("UR"), vr_code("UT"), vr_code("UV")};
constexpr std::array kShortVrs = {vr_code("AE"), vr_code("AS"), vr_code("AT"), vr_code("CS"), vr_code("DA"),
                                  vr_code("DS"), vr_code("DT"), vr_code("FD"), vr_code("FL"), vr_code("IS"),
                                  vr_code("LO"), vr_code("LT"), vr_code("PN"), vr_code("SH"), vr_code("SL"),
                                  vr_code("SS"), vr_code("ST"), vr_code("TM"), vr_code("UI"), vr_code("UL"),
                                  vr_code("US")};

template <size_t N>
bool contains(const std::array<uint16_t, N>& codes, uint16_t code) {
  return std::find(codes.begin(), codes.end(), code) != codes.end();
}

constexpr uint64_t kOpen = UINT64_MAX;
constexpr int kDepth = 32;

// A sequence of undefined length, or one of its items; `end` is kOpen where a delimiter ends it.
struct Level {
  bool is_item;
  bool implicit;
  uint64_t end;
};

}  // namespace

bool looks_explicit(const uint8_t* element) {
  const auto is_capital = [](uint8_t byte) { return 'A' <= byte && byte <= 'Z'; };
  return is_capital(element[4]) && is_capital(element[5]);
}

std::optional<Element> element_at(Source& source, uint64_t offset, Encoding encoding) {
  const uint8_t* bytes = source.at(offset, 8);
  if (!bytes) return std::nullopt;
  const uint32_t group = read_u16(bytes, encoding.little), element = read_u16(bytes + 2, encoding.little);
  const uint32_t tag = group << 16 | element;
  if (encoding.implicit || group == 0xFFFE) {
    return Element{tag, 0, read_u32(bytes + 4, encoding.little), offset + 8};
  }
  const auto vr = static_cast<uint16_t>(bytes[4] << 8 | bytes[5]);
  if (contains(kShortVrs, vr)) return Element{tag, vr, read_u16(bytes + 6, encoding.little), offset + 8};
  if (!contains(kLongVrs, vr)) return std::nullopt;
  bytes = source.at(offset, 12);
  if (!bytes) return std::nullopt;
  return Element{tag, vr, read_u32(bytes + 8, encoding.little), offset + 12};
}

bool is_open_sequence(const Element& element, Encoding encoding) {
  return element.length == kUndefinedLength &&
         (encoding.implicit || element.vr == vr_code("SQ") || element.vr == vr_code("UN"));
}

std::optional<uint64_t> behind_sequence(Source& source, uint64_t offset, Encoding encoding) {
  std::array<Level, kDepth> levels;
  int depth = 0;
  levels[0] = {false, encoding.implicit, kOpen};
  while (depth >= 0) {
    const Level level = levels[depth];
    if (offset >= level.end) {
      if (offset > level.end) return std::nullopt;
      --depth;
      continue;
    }
    const Encoding here{level.implicit, encoding.little};
    const auto element = element_at(source, offset, here);
    if (!element) return std::nullopt;
    const uint64_t value = element->value_offset;
    if (element->tag == (level.is_item ? kItemEnd : kSequenceEnd)) {
      if (level.end != kOpen) return std::nullopt;
      offset = value;
      --depth;
      continue;
    }
    const bool opens = level.is_item ? is_open_sequence(*element, here) : element->tag == kItem;
    if (!opens) {  // an element of an item, which is skipped by its length
      if (!level.is_item || element->tag >> 16 == 0xFFFE) return std::nullopt;
      if (element->length == kUndefinedLength || element->length > source.size() - value) return std::nullopt;
      offset = value + element->length;
      continue;
    }
    if (element->tag >> 16 == 0xFFFE && level.is_item) return std::nullopt;
    if (++depth == kDepth) return std::nullopt;
    Level inner{!level.is_item, level.implicit, kOpen};
    if (inner.is_item) {
      if (element->length != kUndefinedLength) {
        if (element->length > source.size() - value) return std::nullopt;
        inner.end = value + element->length;
      }
      // Items of an explicit sequence may be implicit, with no more of a sign than this.
      const uint8_t* first = source.at(value, 8);
      if (first && !looks_explicit(first)) inner.implicit = true;
    }
    levels[depth] = inner;
    offset = value;
  }
  return offset;
}

}  // namespace fastmed::host
