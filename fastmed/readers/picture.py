"""Grey images (PNG, BMP, JPEG, TIFF) through Pillow: one plane of 8- or 16-bit grey values."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from fastmed.errors import SeriesError
from fastmed.geometry import Geometry
from fastmed.readers.series import Series, name_from_path, one_line
from fastmed.readers.walk import Found
from fastmed.volume import Volume

_GREY_8, _GREY_16, _WHOLE = ("1", "L"), ("I;16", "I;16L", "I;16B", "I;16N"), "I"
_COLOUR = ("P", "LA", "PA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


class _Refused(Exception):
    """Why a file is not taken."""


@dataclass(frozen=True)
class StoredPicture:
    """The file that Pillow is to open."""

    path: str


def picture_entry(found: Found) -> Series:
    """Judges one picture from its header; a colour image also by its pixels, which may be grey."""
    shape = geometry = None
    try:
        shape = (1, *_shape(found.path))
        geometry = Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
        kind, verdict, conditions = "grey image", "ok", ("single slice",)
        reason = f"grey image, {shape[2]} x {shape[1]} pixels"
    except _Refused as error:
        conditions = ("not in hu",)
        kind, verdict, reason = "grey image", "refused", str(error)
    except Exception as error:  # Pillow raises whatever damaged bytes lead it to
        kind, verdict, conditions = "damaged", "failed", ("damaged",)
        text = one_line(error, found.path, found.relative)
        reason = f"it cannot be read as a picture ({text})"
    return Series(
        name=name_from_path(found.relative),
        source=found.relative,
        kind=kind,
        verdict=verdict,
        reason=reason,
        shape_zyx=shape,
        geometry=geometry,
        format="picture",
        stored=StoredPicture(found.path),
        conditions=conditions,
    )


def read_picture(series: Series) -> Volume:
    """Reads a picture as a Volume of one slice, 1 x 1 x 1, its grey values as stored.

    Raises SeriesError where the file is damaged.
    """
    try:
        pixels = read_pixels(series.stored.path)
    except SeriesError as error:
        raise SeriesError(f"{series.source}: {error}") from error
    return Volume(pixels[None], series.geometry, name=series.name, source=series.source)


def read_pixels(path: str) -> np.ndarray:
    """Returns the grey values [H, W] of a picture, uint8 or uint16.

    Black and white images have 0 and 255; those stored in colour are taken where all three
    channels are equal. Raises SeriesError, without the file's name, for any other.
    """
    try:
        with _opened(path) as image:
            return _pixels(image)
    except _Refused as error:
        raise SeriesError(str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise SeriesError(f"it is damaged ({one_line(error, path, '')})") from error
    except Exception as error:
        raise SeriesError(f"it is damaged ({one_line(error, path, '')})") from error


def _shape(path: str) -> tuple[int, int]:
    with _opened(path) as image:
        if image.mode in _COLOUR or image.mode == _WHOLE:
            return _pixels(image).shape
        if image.mode not in (*_GREY_8, *_GREY_16):
            raise _Refused(f"its pixels are of Pillow's mode {image.mode}: expected 8 or 16 bits")
        return image.height, image.width


def _opened(path: str):
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images; from twice that size on, it refuses
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise _Refused(f"it is too large for one image ({error})") from error
    if (count := getattr(image, "n_frames", 1)) != 1:
        image.close()
        raise _Refused(f"it holds {count} images: store each in a file of its own")
    return image


def _pixels(image) -> np.ndarray:
    if image.mode in _GREY_8:
        return np.array(image.convert("L"))
    if image.mode in _GREY_16:
        return np.array(image).astype(np.uint16)
    if image.mode == _WHOLE:
        pixels = np.array(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise _Refused(
                f"its values run from {pixels.min()} to {pixels.max()}: expected 8 or 16 bits"
            )
        return pixels.astype(np.uint16)
    if image.mode not in _COLOUR:
        raise _Refused(f"its pixels are of Pillow's mode {image.mode}: expected 8 or 16 bits")
    red, green, blue, alpha = np.moveaxis(np.array(image.convert("RGBA")), -1, 0)
    if (alpha != 255).any():
        raise _Refused("it is transparent in part: store plain grey values")
    if (red != green).any() or (red != blue).any():
        raise _Refused("a colour image: its channels differ; store plain grey values")
    return red.copy()
