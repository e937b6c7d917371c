// DICOM headers: the raw values of wanted attributes, and where the pixels are.
#include "host/header.h"

#include <algorithm>

#include "host/elements.h"

namespace fastmed::host {
namespace {

constexpr uint64_t kMarkEnd = 132;  // a preamble of 128 bytes, then "DICM"
constexpr uint32_t kMediaClassUid = 0x00020002;
constexpr uint32_t kMediaInstanceUid = 0x00020003;
constexpr uint32_t kTransferSyntaxUid = 0x00020010;
constexpr uint32_t kPixelGroup = 0x7FE0;
constexpr uint32_t kPixelData = 0x7FE00010;
constexpr uint32_t kLongestValue = 4096;
constexpr size_t kMostFragments = size_t{1} << 16;

const std::string kImplicitLittle = "1.2.840.10008.1.2";
const std::string kExplicitLittle = "1.2.840.10008.1.2.1";
const std::string kExplicitBig = "1.2.840.10008.1.2.2";
const std::string kRle = "1.2.840.10008.1.2.5";
const std::string kJpegFamily = "1.2.840.10008.1.2.4.";

std::optional<std::string> value_of(Source& source, const Element& element) {
  if (element.length > kLongestValue) return std::nullopt;
  const uint8_t* bytes = source.at(element.value_offset, element.length);
  if (!bytes) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(bytes), element.length);
}

// A UID without its padding; nothing where it is none.
std::optional<std::string> uid_of(Source& source, const Element& element) {
  auto value = value_of(source, element);
  if (!value) return std::nullopt;
  while (!value->empty() && (value->back() == '\0' || value->back() == ' ')) value->pop_back();
  const auto is_uid = [](char c) { return c == '.' || ('0' <= c && c <= '9'); };
  if (value->size() > 64 || !std::all_of(value->begin(), value->end(), is_uid)) return std::nullopt;
  return value;
}

bool is_compressed(const std::string& syntax) { return syntax == kRle || syntax.starts_with(kJpegFamily); }

// Reads group 2 into `header`; returns the offset of the first element behind it.
std::optional<uint64_t> read_file_meta(Source& source, Header& header) {
  constexpr Encoding kExplicit{false, true};
  uint64_t offset = kMarkEnd;
  uint32_t last_tag = 0;
  while (offset < source.size()) {
    const uint8_t* bytes = source.at(offset, 8);
    if (!bytes) return std::nullopt;
    if (read_u16(bytes, true) != 2) return offset;
    const auto element = element_at(source, offset, kExplicit);
    if (!element || element->tag <= last_tag) return std::nullopt;
    if (element->length > source.size() - element->value_offset) return std::nullopt;
    last_tag = element->tag;
    std::string* target = last_tag == kTransferSyntaxUid  ? &header.transfer_syntax
                          : last_tag == kMediaClassUid    ? &header.media_class_uid
                          : last_tag == kMediaInstanceUid ? &header.media_instance_uid
                                                          : nullptr;
    if (target) {
      auto uid = uid_of(source, *element);
      if (!uid) return std::nullopt;
      *target = std::move(*uid);
    }
    offset = element->value_offset + element->length;
  }
  return std::nullopt;
}

bool set_encoding(Source& source, uint64_t offset, Header& header) {
  const std::string& syntax = header.transfer_syntax;
  header.implicit = syntax == kImplicitLittle;
  header.little = syntax != kExplicitBig;
  if (!is_native(syntax) && !is_compressed(syntax)) return false;
  const uint8_t* first = source.at(offset, 8);
  return first && looks_explicit(first) != header.implicit;
}

// Walks the fragments from `offset` on and shows each to `visit`, until it says no; true where their end is there.
template <class Visit>
bool walk_fragments(Source& source, uint64_t offset, Visit visit) {
  while (const uint8_t* mark = source.at(offset, 8)) {
    const uint32_t tag = static_cast<uint32_t>(read_u16(mark, true)) << 16 | read_u16(mark + 2, true);
    const uint32_t length = read_u32(mark + 4, true);
    if (tag != kItem) return tag == kSequenceEnd;
    if (!visit(Fragment{offset + 8, length})) return false;
    offset += 8 + uint64_t{length};
  }
  const uint8_t* mark = source.at(offset, 4);
  return mark && read_u16(mark, true) == kSequenceEnd >> 16 && read_u16(mark + 2, true) == (kSequenceEnd & 0xFFFF);
}

}  // namespace

bool is_native(const std::string& syntax) {
  return syntax == kImplicitLittle || syntax == kExplicitLittle || syntax == kExplicitBig;
}

std::optional<Header> read_header(Source& source, std::span<const uint32_t> tags) {
  const uint8_t* mark = source.at(128, 4);
  if (!mark || !std::equal(mark, mark + 4, "DICM")) return std::nullopt;
  Header header;
  const auto dataset = read_file_meta(source, header);
  if (!dataset || !set_encoding(source, *dataset, header)) return std::nullopt;

  const Encoding encoding{header.implicit, header.little};
  header.values.resize(tags.size());
  size_t next = 0;
  uint32_t last_tag = 0x0002FFFF;
  uint64_t offset = *dataset;
  while (offset < source.size()) {
    const auto element = element_at(source, offset, encoding);
    if (!element || element->tag <= last_tag || element->tag >> 16 == 0xFFFE) return std::nullopt;
    last_tag = element->tag;
    if (last_tag >> 16 == kPixelGroup) {
      if (last_tag != kPixelData) return std::nullopt;
      const bool is_open = element->length == kUndefinedLength;
      if (element->vr != 0 && element->vr != vr_code("OW") && element->vr != vr_code("OB")) return std::nullopt;
      if (is_open && is_native(header.transfer_syntax)) return std::nullopt;
      header.has_pixels = true;
      header.pixel_offset = element->value_offset;
      header.pixel_length = element->length;
      header.cut_short =
          is_open && !walk_fragments(source, element->value_offset, [](const Fragment&) { return true; });
      return header;
    }
    while (next < tags.size() && tags[next] < last_tag) ++next;
    const bool is_wanted = next < tags.size() && tags[next] == last_tag;
    if (element->length == kUndefinedLength) {
      if (is_wanted || !is_open_sequence(*element, encoding)) return std::nullopt;
      const auto behind = behind_sequence(source, element->value_offset, encoding);
      if (!behind) return std::nullopt;
      offset = *behind;
      continue;
    }
    if (element->length > source.size() - element->value_offset) return std::nullopt;
    if (is_wanted) {
      auto value = value_of(source, *element);
      if (!value) return std::nullopt;
      header.values[next] = std::move(*value);
    }
    offset = element->value_offset + element->length;
  }
  return header;
}

std::optional<std::vector<Fragment>> read_fragments(Source& source, uint64_t pixel_offset) {
  std::vector<Fragment> fragments;
  const bool has_end = walk_fragments(source, pixel_offset, [&](const Fragment& fragment) {
    if (fragments.size() == kMostFragments || fragment.length > source.size() - fragment.offset) return false;
    fragments.push_back(fragment);
    return true;
  });
  if (!has_end) return std::nullopt;
  return fragments;
}

}  // namespace fastmed::host
