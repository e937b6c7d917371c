// What the fuzzers run: a header and its fragments are read from bytes, and what is said of them must be true; pixels
// of RLE are decoded.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmed::host {

// `data` is a DICOM file from its 133rd byte on: the preamble and its mark stand before it. Aborts where an offset lies
// outside of the file.
void read_as_dicom(const uint8_t* data, size_t size);

}  // namespace fastmed::host
