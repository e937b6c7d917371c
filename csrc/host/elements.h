// DICOM data elements: one at an offset, and the way over a sequence of undefined length.
#pragma once

#include <cstdint>
#include <optional>

#include "host/source.h"

namespace fastmed::host {

constexpr uint32_t kUndefinedLength = 0xFFFFFFFF;
constexpr uint32_t kItem = 0xFFFEE000;
constexpr uint32_t kItemEnd = 0xFFFEE00D;
constexpr uint32_t kSequenceEnd = 0xFFFEE0DD;

struct Encoding {
  bool implicit;
  bool little;
};

// vr: its two letters, the first one high; 0 with an implicit one, for items and for delimiters.
struct Element {
  uint32_t tag;
  uint16_t vr;
  uint32_t length;
  uint64_t value_offset;
};

constexpr uint16_t vr_code(const char (&letters)[3]) {
  return static_cast<uint16_t>(static_cast<uint8_t>(letters[0]) << 8 | static_cast<uint8_t>(letters[1]));
}

inline uint16_t read_u16(const uint8_t* bytes, bool little) {
  return static_cast<uint16_t>(little ? bytes[0] | bytes[1] << 8 : bytes[1] | bytes[0] << 8);
}

inline uint32_t read_u32(const uint8_t* bytes, bool little) {
  const uint32_t first = read_u16(bytes, little), second = read_u16(bytes + 2, little);
  return little ? first | second << 16 : second | first << 16;
}

// The element at `offset`; nothing where the source ends in it or its VR is none of the standard's.
std::optional<Element> element_at(Source& source, uint64_t offset, Encoding encoding);

// Whether an element of undefined length may hold items.
bool is_open_sequence(const Element& element, Encoding encoding);

// The offset behind the delimiter of a sequence of undefined length whose items start at `offset`; nothing where
// items and lengths do not fit into each other.
std::optional<uint64_t> behind_sequence(Source& source, uint64_t offset, Encoding encoding);

// Whether the two bytes where an explicit VR would stand are capital letters.
bool looks_explicit(const uint8_t* element);

}  // namespace fastmed::host
