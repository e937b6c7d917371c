"""DICOM frames: the slices of an enhanced multi-frame CT as headers, one for each frame.

What a single-frame file says once, an enhanced one says in functional groups, shared by all frames
or for each alone. From here on a frame is judged and read as any other slice.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_notes import Doubt
from fastmed.readers.dicom_quiet import quietly
from fastmed.readers.dicom_words import CODE

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_MOST_FRAMES = 16_384  # of one file; a perfusion of 40 points in time has 12,800
_ITEMS_PER_FRAME = 64  # some 20 macros, with their references
_MORE_ITEMS = 4096
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_PIECE = 1 << 20


def frames_of(header: Header) -> list[Header]:
    """Returns the frames of one enhanced or legacy converted enhanced CT, in stored order.

    Raises Doubt where its functional groups are damaged or do not say which frame is which.
    """
    _check_size(header)
    shared, each = _functional_groups(header)
    if not each:
        raise Doubt(
            f"{header.relative} holds {header.frames} images without saying where each lies; "
            "export the series as one file per slice (CT Image Storage)",
            *("enhanced multi-frame", "no geometry"),
        )
    if len(each) != header.frames:
        raise Doubt(
            f"{header.relative} describes {len(each)} frames and says that it has {header.frames}",
            *("enhanced multi-frame", "damaged"),
            verdict="failed",
        )
    try:
        with quietly():  # values are parsed where they are asked for
            return [_frame(header, k, _Groups(own, shared)) for k, own in enumerate(each)]
    except Exception as error:  # pydicom raises whatever its parsers meet in damaged bytes
        raise Doubt(
            f"{header.relative}: its functional groups are damaged; copy it again",
            *("enhanced multi-frame", "damaged"),
            verdict="failed",
        ) from error


def _check_size(header: Header) -> None:
    """Raises Doubt where pydicom would make more items of the file than any scan has.

    Eight bytes of an empty item take it some kilobytes.
    """
    most = _ITEMS_PER_FRAME * header.frames + _MORE_ITEMS
    if header.frames > _MOST_FRAMES or _items_in(header, most) > most:
        raise Doubt(
            f"{header.relative} describes more than {_MOST_FRAMES} frames, or more than "
            f"{_ITEMS_PER_FRAME} items for each of them: no CT does; if it is one, export it as "
            "one file per slice",
            *("enhanced multi-frame", "too large"),
        )


def _items_in(header: Header, most: int) -> int:
    """How often the tag of an item stands before the pixels, of compressed ones in all; or more
    than `most`."""
    count, left = 0, header.pixel_offset or header.file_bytes
    before = b""
    with open(header.path, "rb") as file:
        while left > 0 and count <= most and (piece := file.read(min(_PIECE, left))):
            left -= len(piece)
            window = before + piece
            count += max(map(window.count, _ITEMS))
            before = window[-3:]
    return count


def _functional_groups(header: Header):
    import pydicom

    try:
        with quietly():
            dataset = pydicom.dcmread(
                header.path,
                stop_before_pixels=True,
                specific_tags=["SpecificCharacterSet", _SHARED, _PER_FRAME],
                force=True,
            )
            shared = dataset[_SHARED].value if _SHARED in dataset else []
            each = dataset[_PER_FRAME].value if _PER_FRAME in dataset else []
            return shared[0] if shared else pydicom.Dataset(), list(each)
    except OSError:
        raise
    except Exception as error:
        raise Doubt(
            f"{header.relative}: its functional groups cannot be read; copy it again",
            *("enhanced multi-frame", "damaged"),
            verdict="failed",
        ) from error


class _Groups:
    """The attributes of one frame: its own functional groups, then those that all frames share."""

    def __init__(self, own, shared) -> None:
        self._own, self._shared = own, shared

    def of(self, sequence: str, keyword: str):
        """An attribute out of a macro's only item; None where it is absent or empty."""
        for groups in (self._own, self._shared):
            items = groups.get(sequence)
            if items:
                value = items[0].get(keyword)
                return None if value in (None, "") else value
        return None

    def numbers(self, sequence: str, keyword: str) -> tuple[float, ...]:
        """A list of decimals; () where it is absent."""
        value = self.of(sequence, keyword)
        return () if value is None else tuple(float(part) for part in _listed(value))

    def number(self, sequence: str, keyword: str) -> float | None:
        """The first of the decimals."""
        return next(iter(self.numbers(sequence, keyword)), None)

    def text(self, sequence: str, keyword: str) -> str:
        """A text, "" where it is absent."""
        return "\\".join(str(part) for part in _listed(self.of(sequence, keyword) or ""))

    def code(self, sequence: str, keyword: str) -> str:
        """A code word; other text, as damage brings it, may hold a name and is never shown."""
        word = self.text(sequence, keyword).strip().upper()
        return word if CODE.fullmatch(word) else "?"


def _listed(value) -> list:
    return [value] if isinstance(value, str | int | float) else list(value)


def _frame(header: Header, k: int, groups: _Groups) -> Header:
    values = "PixelValueTransformationSequence"
    transformed = groups.of(values, "RescaleSlope") is not None
    content = "FrameContentSequence"
    acquisition = groups.number(content, "FrameAcquisitionNumber")
    image_type = groups.text("CTImageFrameTypeSequence", "FrameType").upper()
    stack = [groups.text(content, word) for word in ("StackID", "TemporalPositionIndex")]
    offset = header.pixel_offset
    return replace(
        header,
        frame=k,
        position=groups.numbers("PlanePositionSequence", "ImagePositionPatient"),
        orientation=groups.numbers("PlaneOrientationSequence", "ImageOrientationPatient"),
        pixel_spacing=groups.numbers("PixelMeasuresSequence", "PixelSpacing"),
        slice_thickness=groups.number("PixelMeasuresSequence", "SliceThickness"),
        slope=groups.number(values, "RescaleSlope") if transformed else header.slope,
        intercept=groups.number(values, "RescaleIntercept") if transformed else header.intercept,
        rescale_type=groups.code(values, "RescaleType") or header.rescale_type,
        kernel=groups.text("CTReconstructionSequence", "ConvolutionKernel") or header.kernel,
        reconstruction_diameter=groups.number("CTReconstructionSequence", "ReconstructionDiameter"),
        image_type=tuple(image_type.split("\\")) if image_type else header.image_type,
        acquisition_number=header.acquisition_number
        if acquisition is None or not math.isfinite(acquisition)
        else int(acquisition),
        stack="/".join(stack) if any(stack) else "",
        pixel_offset=None if offset is None else offset + k * header.pixel_bytes,
    )
