"""Transfer syntaxes: the slices of a written series in each encoding that archives hold."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

_JPEG = "1.2.840.10008.1.2.4."
UNSUPPORTED = f"{_JPEG}100"  # MPEG2: a film, no slice


def encode(path: Path, syntax: str) -> None:
    """Rewrites an uncompressed slice in the transfer syntax of one of SYNTAXES."""
    SYNTAXES[syntax](path, _UIDS[syntax])


def syntaxes() -> list[str]:
    """The names of SYNTAXES that this machine can write; HTJ2K takes imagecodecs."""
    return [name for name in SYNTAXES if not name.startswith("htj2k") or find_spec("imagecodecs")]


def _native(path: Path, uid: str) -> None:
    import pydicom
    from pydicom.uid import UID

    dataset, syntax = pydicom.dcmread(path), UID(uid)
    for _ in dataset.iterall():  # decodes each value, so that it is written in the new byte order
        pass
    if not syntax.is_little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
        overwrite=True,
    )


def _by_pydicom(path: Path, uid: str, **settings) -> None:
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.compress(uid, generate_instance_uid=False, **settings)
    dataset.save_as(path)


def _by_gdcm(path: Path, uid: str) -> None:
    """JPEG lossless of 16 bits: gdcm makes the frame, pydicom the file, so that bytes repeat."""
    import gdcm
    import pydicom
    from pydicom.encaps import generate_frames

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(uid)))
    change.SetInput(reader.GetImage())
    change.Change()
    made = path.with_name(f".{path.name}.gdcm")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(made))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()
    frame = next(generate_frames(pydicom.dcmread(made).PixelData, number_of_frames=1))
    made.unlink()
    _encapsulate(path, uid, frame)


def _by_imagecodecs(path: Path, uid: str) -> None:
    import imagecodecs
    import pydicom

    frame = imagecodecs.htj2k_encode(pydicom.dcmread(path).pixel_array, reversible=True)
    _encapsulate(path, uid, bytes(frame))


def _baseline(path: Path, uid: str) -> None:
    """8 bits of grey, 16 HU apart: what JPEG baseline can hold of a CT."""
    import io

    import pydicom
    from PIL import Image

    stored = pydicom.dcmread(path).pixel_array
    file = io.BytesIO()
    Image.fromarray((stored // 16).astype(np.uint8)).save(file, "jpeg", quality=95)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionMethod": "ISO_10918_1"}
    _encapsulate(path, uid, file.getvalue(), RescaleSlope=16, **eight, **lossy)


def _encapsulate(path: Path, uid: str, frame: bytes, **attributes) -> None:
    import pydicom
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(path)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.save_as(path, enforce_file_format=True)


def _lossy_2000(path: Path, uid: str) -> None:
    _by_pydicom(path, uid, j2k_psnr=[85])


def _near_lossless(path: Path, uid: str) -> None:
    _by_pydicom(path, uid, jls_error=2)


_UIDS = {
    "implicit little endian": "1.2.840.10008.1.2",
    "big endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg baseline": f"{_JPEG}50",
    "jpeg lossless": f"{_JPEG}57",
    "jpeg lossless first order": f"{_JPEG}70",
    "jpeg-ls": f"{_JPEG}80",
    "jpeg-ls near lossless": f"{_JPEG}81",
    "jpeg 2000 lossless": f"{_JPEG}90",
    "jpeg 2000": f"{_JPEG}91",
    "htj2k lossless": f"{_JPEG}201",
    "htj2k": f"{_JPEG}203",
}
SYNTAXES: dict[str, Callable[[Path, str], None]] = {
    "implicit little endian": _native,
    "big endian": _native,
    "deflated": _native,
    "rle": _by_pydicom,
    "jpeg baseline": _baseline,
    "jpeg lossless": _by_gdcm,
    "jpeg lossless first order": _by_gdcm,
    "jpeg-ls": _by_pydicom,
    "jpeg-ls near lossless": _near_lossless,
    "jpeg 2000 lossless": _by_pydicom,
    "jpeg 2000": _lossy_2000,
    "htj2k lossless": _by_imagecodecs,
    "htj2k": _by_imagecodecs,
}
