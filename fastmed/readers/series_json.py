"""Series as JSON: an entry of an index, written into a record and read back exactly."""

from __future__ import annotations

from fastmed.geometry import Geometry
from fastmed.readers.series import Series
from fastmed.readers.walk import Found

_TEXTS = ("name", "source", "kind", "verdict", "reason", "files", "spacing_is_known", "format")
_LISTS = ("warnings", "conditions")


def series_dict(series: Series) -> dict:
    """What json.dumps takes; everything of the entry but `stored`, which its files can give."""
    geometry = series.geometry
    return {
        **{name: getattr(series, name) for name in _TEXTS},
        **{name: list(getattr(series, name)) for name in _LISTS},
        "shape_zyx": None if series.shape_zyx is None else list(map(int, series.shape_zyx)),
        "geometry": geometry
        and {"shape_zyx": list(geometry.shape_zyx), "affine": geometry.affine.tolist()},
        "members": [_found_list(found) for found in series.members],
    }


def series_from_dict(content: dict) -> Series:
    """The entry that `series_dict` was given; its `stored` is None."""
    shape, geometry = content["shape_zyx"], content["geometry"]
    return Series(
        **{name: content[name] for name in _TEXTS},
        **{name: tuple(content[name]) for name in _LISTS},
        shape_zyx=None if shape is None else tuple(shape),
        geometry=geometry and Geometry(tuple(geometry["shape_zyx"]), geometry["affine"]),
        members=tuple(Found(*values) for values in content["members"]),
    )


def _found_list(found: Found) -> list:
    return [
        found.path,
        found.relative,
        found.file_bytes,
        found.problem,
        found.mtime_ns,
        found.inode,
        found.member,
        found.condition,
    ]
