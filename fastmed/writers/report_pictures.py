"""Pictures of report.html: part of the page, or files beside it with thumbnails of their own."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fastmed.writers.thumbnail import THUMBNAIL, jpeg

_WIDEST_PX = 1200


@dataclass(frozen=True)
class Linked:
    """What <img> loads, and what a click on it opens ("" where there is nothing more to see)."""

    src: str
    href: str


def embedded(preview_png: bytes | str | Path | None, folder: Path) -> tuple[str, int, int] | None:
    """The picture as a JPEG data URI, and its size in pixels; None where it cannot be read."""
    from markupsafe import Markup
    from PIL import Image

    if preview_png is None:
        return None
    source = io.BytesIO(preview_png) if isinstance(preview_png, bytes) else folder / preview_png
    try:
        with Image.open(source) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError):
        return None
    if picture.width > _WIDEST_PX:
        height_px = max(1, round(picture.height * _WIDEST_PX / picture.width))
        picture = picture.resize((_WIDEST_PX, height_px), Image.Resampling.LANCZOS)
    return Markup(_data_uri(jpeg(picture))), *picture.size


def linked(preview_png: bytes | str | Path | None, folder: Path) -> Linked | None:
    """The picture as the address of a file, relative to the page; None where there is none."""
    from markupsafe import Markup

    if preview_png is None:
        return None
    if isinstance(preview_png, bytes):
        found = embedded(preview_png, folder)
        return Linked(found[0], "") if found else None
    preview = folder / preview_png
    thumbnail = preview.with_name(THUMBNAIL)
    has_preview, has_thumbnail = preview.is_file(), thumbnail.is_file()
    if not (has_preview or has_thumbnail):
        return None
    return Linked(
        Markup(_address(thumbnail if has_thumbnail else preview, folder)),
        Markup(_address(preview, folder)) if has_preview else "",
    )


def _address(file: Path, folder: Path) -> str:
    """A relative URL; whatever a name holds, it can be no other scheme, host or markup."""
    relative = Path(os.path.relpath(file, folder)).as_posix()
    return quote(os.fsencode(relative), safe="/")


def _data_uri(jpeg_bytes: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_bytes).decode()}"
