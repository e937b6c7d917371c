"""A process that decodes DICOM files: [path, frame] as one JSON line in, the pixels out.

Each answer is one JSON line, {"dtype", "shape"} followed by the raw pixels, or {"error"}.
"""

from __future__ import annotations

import json
import sys

from fastmed.readers.dicom_quiet import quietly


def decoded(path: str, frame: int = 0):
    """Returns the pixels [H, W] of one frame of a DICOM file as pydicom decodes them.

    Raises RuntimeError with one line that says why not, whatever the decoder raised.
    """
    from pydicom.pixels import pixel_array

    try:
        with quietly():
            return pixel_array(_source(path, frame), index=frame)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # damaged bytes: decoders raise anything, Rust ones even panic
        raise RuntimeError(f"{error}" or type(error).__name__) from error


def _source(path: str, frame: int):
    """What pydicom decodes a frame from: the whole file, which the first one is read with; else its
    name, so that no more is read than the frame takes; of a deflated file always all of it."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info

    if frame > 0 and read_file_meta_info(path).TransferSyntaxUID.is_encapsulated:
        return path
    return dcmread(path, force=True)


def main() -> None:
    """Answers until its input ends."""
    for line in sys.stdin:
        try:
            pixels = decoded(*json.loads(line))
            answer, raw = {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes()
        except RuntimeError as error:
            answer, raw = {"error": str(error)}, b""
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + raw)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
