"""Damages: what can be wrong with a written CT series, each with the verdict that it must get."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmed.phantom_archive.case import Case
from fastmed.phantom_archive.editing import (
    attribute,
    cut_short,
    edit,
    edit_all,
    move,
    new_uid,
    pixels,
)
from fastmed.phantom_archive.encoding import UNSUPPORTED, encode
from fastmed.phantom_archive.truth import Expected


@dataclass(frozen=True)
class Damage:
    """What an edit of a sound series' files, by rising z, makes of it.

    edit: changes the files; gets a generator of its own. The rest is as in Expected.
    """

    edit: Callable[[list[Path], np.random.Generator], None]
    conditions: str
    strict: str
    lenient: str
    shows: str = "headers"

    def __call__(self, case: Case) -> list[Expected]:
        scan = case.scan()
        self.edit(case.write(scan), case.rng)
        is_whole = self.strict == "ok"
        return [
            case.row(
                "ct",
                self.conditions,
                self.strict,
                self.lenient,
                shows=self.shows,
                files=len(list(case.folder.iterdir())),
                liver_ml=scan.liver_ml if is_whole else "",
            )
        ]


def _inner(paths: list[Path], rng: np.random.Generator) -> int:
    """A slice well inside the stack, so that its neighbours on both sides stay."""
    return int(rng.integers(len(paths) // 4, len(paths) // 2))


def _lose(paths, rng) -> None:
    k = _inner(paths, rng)
    for path in paths[k : k + int(rng.integers(1, 3))]:
        path.unlink()


def _lose_at_two_places(paths, rng) -> None:
    k = _inner(paths, rng)
    paths[k].unlink()
    paths[k + 3].unlink()


def _shift_sideways(paths, rng) -> None:
    """By less than a pixel, which lenient takes as lying on the grid, and more than a rounding."""
    pixel = float(attribute(paths[0], "PixelSpacing")[0])
    move(paths[_inner(paths, rng)], (0.4 * pixel, 0, 0))


def _copy_files(paths, rng) -> None:
    k = _inner(paths, rng)
    for path in paths[k : k + 3]:
        shutil.copyfile(path, path.with_name(f"copy-of-{path.name}"))


def _copy_under_new_uids(paths, rng) -> None:
    k = _inner(paths, rng)
    for path in paths[k : k + 2]:
        again = path.with_name(f"sent-again-{path.name}")
        shutil.copyfile(path, again)
        edit(again, SOPInstanceUID=new_uid(path))


def _doubled(paths, rng) -> None:
    """Another image at a position that is taken."""
    path = paths[_inner(paths, rng)]
    other = path.with_name(f"other-{path.name}")
    shutil.copyfile(path, other)
    edit(other, SOPInstanceUID=new_uid(path), PixelData=pixels(path)[:, ::-1].tobytes())


def _lose_rescale(paths, rng) -> None:
    """The values are Hounsfield units as they stand, and nothing says so."""
    gone = {"RescaleSlope": None, "RescaleIntercept": None, "RescaleType": None}
    for path in paths:
        edit(path, PixelData=(pixels(path) - 1024).astype("<i2").tobytes(), **gone)


def _not_in_hu(paths, rng) -> None:
    edit_all(paths, RescaleType=["Z_EFF", "HU_MOD", "OD", "ED"][int(rng.integers(4))])


def _lose_pixel_spacing(paths, rng) -> None:
    edit_all(paths, PixelSpacing=None)


def _lose_a_position(paths, rng) -> None:
    edit(paths[_inner(paths, rng)], ImagePositionPatient=None)


def _crowd(paths, rng) -> None:
    """Two slices 0.05 mm apart in a stack of many centimetres: no grid holds them."""
    k = _inner(paths, rng)
    below = attribute(paths[k], "ImagePositionPatient")
    edit(paths[k + 1], ImagePositionPatient=[below[0], below[1], round(float(below[2]) + 0.05, 4)])


def _cut_a_slice(paths, rng) -> None:
    cut_short(paths[_inner(paths, rng)], 0.7)


def _cut_a_compressed_slice(paths, rng) -> None:
    for path in paths:
        encode(path, "jpeg 2000 lossless")
    cut_short(paths[_inner(paths, rng)], 0.8)


def _garble_a_compressed_slice(paths, rng) -> None:
    """The file is whole, and its fragment too; only a decoder finds that it is no image."""
    import pydicom
    from pydicom.encaps import encapsulate

    for path in paths:
        encode(path, "jpeg 2000 lossless")
    path = paths[_inner(paths, rng)]
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([rng.bytes(400)])
    dataset.save_as(path, enforce_file_format=True)


def _lose_pixels(paths, rng) -> None:
    edit(paths[_inner(paths, rng)], PixelData=None)


def _encrypt_attributes(paths, rng) -> None:
    """As PS3.15 E has it: what was taken out lies in an envelope that only a key opens."""
    from pydicom.dataset import Dataset

    for path in paths:
        item = Dataset()
        item.EncryptedContentTransferSyntaxUID = "1.2.840.10008.1.2"
        item.EncryptedContent = envelope(rng, 512)
        edit(path, PixelData=None, EncryptedAttributesSequence=[item])


def _make_films(paths, rng) -> None:
    import pydicom
    from pydicom.encaps import encapsulate

    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([b"\0\0\1\xb3" + rng.bytes(252)])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = UNSUPPORTED
        dataset.save_as(path, enforce_file_format=True)


def envelope(rng: np.random.Generator, count: int) -> bytes:
    """A CMS envelope as encrypted DICOM has it: type EnvelopedData, then what nobody can read."""
    body = bytes.fromhex("06092a864886f70d010703a080") + rng.bytes(count)
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


DAMAGES = {
    "missing slices": Damage(_lose, "missing slices", "refused", "ok"),
    "missing at two places": Damage(_lose_at_two_places, "missing slices", "refused", "ok"),
    "shifted slice": Damage(_shift_sideways, "shifted slices", "refused", "ok"),
    "identical files": Damage(_copy_files, "uniform; identical copies", "ok", "ok"),
    "identical slices under new UIDs": Damage(
        _copy_under_new_uids, "uniform; identical copies", "ok", "ok"
    ),
    "duplicate position": Damage(_doubled, "duplicate positions", "refused", "ok"),
    "no rescale": Damage(_lose_rescale, "uniform; no rescale", "refused", "ok"),
    "not in hu": Damage(_not_in_hu, "not in hu", "refused", "refused"),
    "no pixel spacing": Damage(_lose_pixel_spacing, "no geometry", "refused", "refused"),
    "no position": Damage(_lose_a_position, "no geometry", "refused", "refused"),
    "too large": Damage(_crowd, "uneven; too large", "refused", "refused"),
    "truncated": Damage(_cut_a_slice, "truncated", "failed", "failed"),
    "truncated jpeg 2000": Damage(_cut_a_compressed_slice, "truncated", "failed", "failed"),
    "garbled jpeg 2000": Damage(
        _garble_a_compressed_slice, "damaged", "failed", "failed", "voxels"
    ),
    "no pixels": Damage(_lose_pixels, "truncated", "failed", "failed"),
    "encrypted attributes": Damage(_encrypt_attributes, "encrypted", "failed", "failed"),
    "unsupported transfer syntax": Damage(
        _make_films, "unsupported transfer syntax", "failed", "failed"
    ),
}
