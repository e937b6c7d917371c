"""thumb.jpg: the first plane of a preview, small, for pages that show thousands of scans."""

from __future__ import annotations

import io

from PIL import Image

THUMBNAIL = "thumb.jpg"
_SIDE_PX = 192  # 96 CSS pixels on a screen of double density


def thumbnail(picture: Image.Image, plane: tuple[int, int, int, int]) -> bytes:
    """Returns a JPEG of at most 192 x 192 pixels; the same picture gives the same bytes.

    plane: (left, top, right, bottom) of the part to show, in pixels of `picture`.
    """
    part = picture.crop(plane)
    scale = _SIDE_PX / max(part.size)
    size = tuple(max(1, round(side * scale)) for side in part.size)
    return jpeg(part.resize(size, Image.Resampling.LANCZOS, reducing_gap=None))


def jpeg(picture: Image.Image) -> bytes:
    """Returns an RGB picture as a JPEG that holds nothing but its pixels."""
    bare = picture.copy()
    bare.info.clear()  # Pillow would carry a comment over
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=84, subsampling=0, optimize=True)
    return buffer.getvalue()
