// fastmed._host: the Python face of the threaded DICOM reader; the GIL is released while files are read.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <span>
#include <string_view>

#include "host/file.h"
#include "host/header.h"
#include "host/parallel.h"
#include "host/pixels.h"
#include "host/rle.h"

namespace py = pybind11;

namespace fastmed::host {
namespace {

using Paths = std::vector<std::string>;

std::vector<std::optional<Header>> parse_all(const Paths& paths, const std::vector<uint32_t>& tags, size_t threads) {
  std::vector<std::optional<Header>> headers(paths.size());
  parallel(paths.size(), threads, [&] {
    return [&, buffer = std::vector<uint8_t>()](size_t k) mutable {
      File file(paths[k]);
      if (file.error()) return;
      FileSource source(file, buffer);
      auto header = read_header(source, tags);
      if (!file.error()) headers[k] = std::move(header);
    };
  });
  return headers;
}

py::list headers_of(const Paths& paths, const std::vector<uint32_t>& tags, size_t threads) {
  std::vector<std::optional<Header>> headers;
  {
    py::gil_scoped_release released;
    headers = parse_all(paths, tags, threads);
  }
  py::list answer(headers.size());
  for (size_t k = 0; k < headers.size(); ++k) {
    if (!headers[k]) {
      answer[k] = py::none();
      continue;
    }
    const Header& header = *headers[k];
    py::tuple values(header.values.size());
    for (size_t v = 0; v < header.values.size(); ++v) values[v] = py::bytes(header.values[v]);
    answer[k] = py::make_tuple(header.transfer_syntax, header.implicit, header.little, header.media_class_uid,
                               header.media_instance_uid, values, header.has_pixels, header.cut_short,
                               header.pixel_offset, header.pixel_length);
  }
  return answer;
}

// The fragments of the only frame of a file with compressed pixels; nothing where they are not whole or too many.
std::optional<std::vector<Fragment>> frame_of(File& file) {
  std::vector<uint8_t> buffer;
  FileSource source(file, buffer);
  const auto header = read_header(source, {});
  if (!header || !header->has_pixels || is_native(header->transfer_syntax)) return std::nullopt;
  auto fragments = read_fragments(source, header->pixel_offset);
  if (!fragments || fragments->size() < 2) return std::nullopt;
  fragments->erase(fragments->begin());  // the offset table
  return fragments;
}

py::object read_frame(const std::string& path) {
  std::string bytes;
  {
    py::gil_scoped_release released;
    File file(path);
    const auto fragments = file.error() ? std::nullopt : frame_of(file);
    if (fragments) {
      uint64_t total = 0;  // no more than the file holds, as each fragment lies in it behind the one before
      for (const Fragment& fragment : *fragments) total += fragment.length;
      bytes.resize(total);
      size_t done = 0;
      for (const Fragment& fragment : *fragments) done += file.read(fragment.offset, bytes.data() + done, fragment.length);
      if (done < total) bytes.clear();
    }
  }
  if (bytes.empty()) return py::none();
  return py::bytes(bytes);
}

// The bytes of a one-dimensional buffer of bytes.
template <class Byte>
std::span<Byte> bytes_of(const py::buffer_info& info) {
  if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1) {
    throw std::invalid_argument("expected contiguous bytes");
  }
  return {static_cast<Byte*>(info.ptr), static_cast<size_t>(info.size)};
}

bool decode_rle_frame(const py::bytes& frame, const py::buffer& pixels, size_t pixel_bytes) {
  const py::buffer_info info = pixels.request(true);
  const std::string_view view = frame;
  const std::span from(reinterpret_cast<const uint8_t*>(view.data()), view.size());
  const std::span to = bytes_of<uint8_t>(info);
  py::gil_scoped_release released;
  return decode_rle(from, to, pixel_bytes);
}

py::tuple read_into(const Paths& paths, const std::vector<uint64_t>& offsets,
                    const std::vector<std::tuple<int64_t, int64_t, int64_t>>& paddings, const py::buffer& voxels,
                    int pixel_bytes, bool is_signed, bool swap, int unused_bits, size_t threads) {
  const py::buffer_info info = voxels.request(true);
  const std::span bytes_to = bytes_of<uint8_t>(info);
  const size_t count = paths.size(), total = bytes_to.size();
  if (count == 0 || total % count || offsets.size() != count || paddings.size() != count) {
    throw std::invalid_argument("voxels: expected a path, an offset and a padding for each slice of equal size");
  }
  const bool is_known = pixel_bytes == 1 || pixel_bytes == 2 || pixel_bytes == 4;
  if (!is_known || unused_bits < 0 || unused_bits >= 8 * pixel_bytes || (total / count) % pixel_bytes) {
    throw std::invalid_argument("pixel_bytes: expected 1, 2 or 4, and fewer unused bits than a pixel has");
  }
  std::vector<Slice> slices(count);
  for (size_t k = 0; k < count; ++k) {
    const auto& [low, high, air] = paddings[k];
    slices[k] = {paths[k], offsets[k], low, high, air};
  }
  std::vector<SliceRead> results;
  {
    py::gil_scoped_release released;
    const PixelType type{pixel_bytes, is_signed, swap, unused_bits};
    results = read_slices(slices, type, bytes_to.data(), total / count, threads);
  }
  py::list bytes(count), errors(count), padded(count);
  for (size_t k = 0; k < count; ++k) {
    bytes[k] = results[k].bytes;
    errors[k] = results[k].error;
    padded[k] = results[k].padded;
  }
  return py::make_tuple(bytes, errors, padded);
}

}  // namespace
}  // namespace fastmed::host

PYBIND11_MODULE(_host, module) {
  using namespace fastmed::host;
  module.doc() = "Reads DICOM headers and uncompressed pixels in threads, without the GIL.";
  module.def("read_headers", &headers_of, py::arg("paths"), py::arg("tags"), py::arg("threads"),
             "For each path (bytes) None where the file is unusual, else (transfer_syntax, implicit, little,\n"
             "media_class_uid, media_instance_uid, values, has_pixels, cut_short, pixel_offset); values are the\n"
             "raw bytes of the rising `tags`.");
  module.def("read_frame", &read_frame, py::arg("path"),
             "The bytes of the one compressed frame of a file; None where they are not whole or unusual.");
  module.def("decode_rle", &decode_rle_frame, py::arg("frame"), py::arg("pixels"), py::arg("pixel_bytes"),
             "Decodes a frame of RLE into `pixels` (bytes); False where the frame does not fill it exactly.");
  module.def("read_slices", &read_into, py::arg("paths"), py::arg("offsets"), py::arg("paddings"),
             py::arg("voxels"), py::arg("pixel_bytes"), py::arg("is_signed"), py::arg("swap"),
             py::arg("unused_bits"), py::arg("threads"),
             "Reads uncompressed slices into `voxels` (bytes); paddings are (low, high, air) in stored values.\n"
             "Returns three lists: bytes found, errno, pixels that were padding.");
}
