"""Writes the fuzzers' corpus: small synthetic DICOM files of every shape that a header takes.

python tools/make_fuzz_corpus.py tests/fuzz_corpus

Each file lacks its preamble and mark, which the fuzzers put before it.
"""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big-endian": "1.2.840.10008.1.2.2",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "rle": "1.2.840.10008.1.2.5",
    "deflated": "1.2.840.10008.1.2.1.99",
}


def slice_of(*, open_sequences: bool) -> Dataset:
    """A CT slice of 4 x 4 pixels with sequences in sequences, a private group and an icon."""
    ct = Dataset()
    ct.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ct.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ct.SOPInstanceUID = "1.2.3.4"
    ct.Modality = "CT"
    ct.PatientName = "Phantom"
    inner, outer, icon = Dataset(), Dataset(), Dataset()
    inner.CodeValue = "1"
    inner.CodeMeaning = "one"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    outer.ReferencedSOPInstanceUID = "1.2.3"
    icon.Rows = icon.Columns = 2
    icon.PixelData = bytes(4)
    icon["PixelData"].VR = "OB"
    for item in (inner, outer, icon):
        item.is_undefined_length_sequence_item = open_sequences
    ct.ReferencedImageSequence = Sequence([outer, Dataset()])
    ct.IconImageSequence = Sequence([icon])
    for element in (ct["ReferencedImageSequence"], ct["IconImageSequence"]):
        element.is_undefined_length = open_sequences
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = open_sequences
    ct.SeriesInstanceUID = "1.2.3"
    ct.ImagePositionPatient = [0, 0, 1.5]
    ct.Rows = ct.Columns = 4
    ct.BitsAllocated = 16
    ct.RescaleSlope = 1
    private = ct.private_block(0x0029, "FASTMED", create=True)
    private.add_new(0x10, "OB", bytes(8))
    ct.PixelData = bytes(range(32))
    ct["PixelData"].VR = "OW"
    return ct


def _rle_frame() -> bytes:
    """16 pixels of two bytes: a run and a literal in each plane."""
    plane = bytes([249, 5, 7, *range(8)])
    return struct.pack("<16L", 2, 64, 64 + len(plane), *[0] * 13) + plane + plane


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, syntax in SYNTAXES.items():
        for open_sequences in (False, True):
            ct = slice_of(open_sequences=open_sequences)
            ct.file_meta = FileMetaDataset()
            ct.file_meta.TransferSyntaxUID = syntax
            if name in ("jpeg2000", "rle"):
                frames = [_rle_frame() if name == "rle" else b"abcd", b"efgh"]
                ct.PixelData = encapsulate(frames, has_bot=open_sequences)
                ct["PixelData"].VR = "OB"
                ct["PixelData"].is_undefined_length = True
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, ct, enforce_file_format=True)
            kind = "open" if open_sequences else "closed"
            (folder / f"{name}-{kind}.bin").write_bytes(buffer.getvalue()[132:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
