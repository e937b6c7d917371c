// DICOM headers: the raw values of wanted attributes, and where the pixels are.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "host/source.h"

namespace fastmed::host {

// What a well-formed DICOM file says. Text and values are the file's own bytes.
// values: those of the wanted tags, in their order; empty where absent.
// pixel_offset: first byte of the pixels' value, 0 where there are none; pixel_length: of that value in bytes, as it says
// itself: 2^32 - 1 for compressed ones.
// cut_short: whether the fragments of compressed pixels lack their end.
struct Header {
  std::string transfer_syntax;
  std::string media_class_uid;
  std::string media_instance_uid;
  bool implicit;
  bool little;
  std::vector<std::string> values;
  bool has_pixels = false;
  bool cut_short = false;
  uint64_t pixel_offset = 0;
  uint32_t pixel_length = 0;
};

struct Fragment {
  uint64_t offset;
  uint32_t length;
};

// Reads a header up to its pixel data. `tags` rise. Nothing where anything at all is unusual: no DICM mark, a deflated
// or private transfer syntax, tags that do not rise, an unknown VR, lengths that do not fit the file. Such a file may
// be sound, and is for another reader to judge.
std::optional<Header> read_header(Source& source, std::span<const uint32_t> tags);

// The fragments of compressed pixels, the offset table first; nothing where their end is absent.
std::optional<std::vector<Fragment>> read_fragments(Source& source, uint64_t pixel_offset);

bool is_native(const std::string& transfer_syntax);

}  // namespace fastmed::host
