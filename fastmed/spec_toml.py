"""bundle.toml: a Spec as a TOML table, and back with every entry checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

from fastmed.spec import CleanUp, Detection, Label, Limits, Network, Spec

FORMAT = 1


def spec_to_table(spec: Spec) -> dict[str, Any]:
    """The table of bundle.toml; what is None or has no meaning for the task is left out."""
    grid = {
        "modality": spec.modality,
        "dimensions": spec.dimensions,
        "region": spec.region,
        "spacing_mm_zyx": _listed(spec.spacing_mm_zyx),
        "size_zyx": _listed(spec.size_zyx),
        "axes": spec.axes if spec.axes != "SPL" else None,
        "mirror_zyx": list(spec.mirror_zyx) if any(spec.mirror_zyx) else None,
        "window_hu": list(spec.window_hu),
        "outside_hu": spec.outside_hu,
    }
    table: dict[str, Any] = {
        "format": FORMAT,
        "name": spec.name,
        "task": spec.task,
        "trained_on": spec.trained_on,
        "notice": spec.notice,
        "grid": _known(grid),
        "labels": [_known(asdict(label)) for label in spec.labels],
    }
    if spec.task == "classification":
        table["negative"] = spec.negative
    if spec.tile_zyx is not None:
        table["tiles"] = {
            "size_zyx": list(spec.tile_zyx),
            "overlap": spec.overlap,
            "size_multiple": spec.size_multiple,
        }
    if spec.slices > 1:
        table["grid"]["slices"] = spec.slices
    if spec.detection is not None:
        table["detection"] = _detection_table(spec.detection)
    if not spec.clean_up.is_off:
        table["clean_up"] = asdict(spec.clean_up)
    if spec.limits != Limits():
        table["limits"] = asdict(spec.limits)
    if spec.network is not None:
        table["network"] = {"name": spec.network.name, **spec.network.arguments}
    return table


def _detection_table(detection: Detection) -> dict[str, Any]:
    table = asdict(detection)
    table["strides"] = list(detection.strides)
    table["diameters_mm"] = [list(level) for level in detection.diameters_mm]
    return table


def _listed(values: tuple | None) -> list | None:
    return None if values is None else list(values)


def _known(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


# What an entry of bundle.toml may be: in words, and how to tell.
_TEXT = ("a text", lambda value: isinstance(value, str))
_NUMBER = ("a number", _is_number)
_WHOLE = ("a whole number", _is_whole)
_YES_NO = ("true or false", lambda value: isinstance(value, bool))
_NUMBERS = ("a list of numbers", lambda value: _is_list_of(value, _is_number))
_WHOLES = ("a list of whole numbers", lambda value: _is_list_of(value, _is_whole))
_LEVELS = (
    "a list of lists of numbers",
    lambda value: _is_list_of(value, lambda level: _is_list_of(level, _is_number)),
)
_YES_NOS = (
    "a list of true and false",
    lambda value: _is_list_of(value, lambda one: isinstance(one, bool)),
)
_TABLES = ("a list of tables", lambda value: _is_list_of(value, lambda v: isinstance(v, dict)))
_ANYTHING = ("anything", lambda value: True)
_Kinds = dict[str, tuple[str, Callable[[Any], bool]]]

_GRID_OPTIONS: _Kinds = {
    "spacing_mm_zyx": _NUMBERS,
    "size_zyx": _WHOLES,
    "outside_hu": _NUMBER,
    "modality": _TEXT,
    "dimensions": _WHOLE,
    "region": _TEXT,
    "slices": _WHOLE,
    "axes": _TEXT,
    "mirror_zyx": _YES_NOS,
}
_DETECTION: _Kinds = {
    "strides": _WHOLES,
    "diameters_mm": _LEVELS,
    "score_threshold": _NUMBER,
    "iou_threshold": _NUMBER,
    "max_boxes": _WHOLE,
}


_LIMITS = tuple(entry.name for entry in fields(Limits))


def spec_from_table(table: dict[str, Any]) -> Spec:
    """Turns the parsed bundle.toml into a Spec; raises ValueError for what is missing or wrong."""
    table = dict(table)
    if table.pop("format", None) != FORMAT:
        raise ValueError(f"format: expected {FORMAT}")
    network = clean_up = tiles = detection = limits = None
    if "network" in table:
        arguments = _take(table, "network", {"name": _TEXT}, others=_ANYTHING)
        network = Network(arguments.pop("name"), arguments)
    grid = _take(table, "grid", {"window_hu": _NUMBERS}, _GRID_OPTIONS)
    is_detection = table.get("task") == "detection"
    if is_detection:
        detection = _detection(_take(table, "detection", {}, _DETECTION))
    flat = is_detection and grid.get("dimensions", 3) == 2
    if table.get("task") != "classification" and not flat:
        options = {"overlap": _NUMBER, "size_multiple": _WHOLE}
        tiles = _take(table, "tiles", {"size_zyx": _WHOLES}, options)
    if "clean_up" in table:
        options = {"largest_component": _YES_NO, "fill_holes": _YES_NO, "smallest_ml": _NUMBER}
        clean_up = CleanUp(**_take(table, "clean_up", {}, options))
    if "limits" in table:
        limits = Limits(**_take(table, "limits", {}, dict.fromkeys(_LIMITS, _NUMBER)))
    top = _checked(
        "",
        table,
        {"name": _TEXT, "task": _TEXT, "labels": _TABLES},
        {"trained_on": _TEXT, "notice": _TEXT, "negative": _TEXT},
    )
    options = {"snomed_ct": _TEXT, "grey": _WHOLE}
    labels = tuple(
        Label(**_checked("labels", label, {"value": _WHOLE, "name": _TEXT}, options))
        for label in top.pop("labels")
    )
    spacing, size = grid.pop("spacing_mm_zyx", None), grid.pop("size_zyx", None)
    if "mirror_zyx" in grid:
        grid["mirror_zyx"] = tuple(grid["mirror_zyx"])
    return Spec(
        labels=labels,
        spacing_mm_zyx=None if spacing is None else tuple(float(s) for s in spacing),
        size_zyx=None if size is None else tuple(size),
        window_hu=tuple(float(v) for v in grid.pop("window_hu")),
        tile_zyx=tuple(tiles.pop("size_zyx")) if tiles else None,
        network=network,
        clean_up=clean_up or CleanUp(),
        detection=detection,
        limits=limits or Limits(),
        **grid,
        **(tiles or {}),
        **top,
    )


def _detection(entries: dict[str, Any]) -> Detection:
    if "strides" in entries:
        entries["strides"] = tuple(entries["strides"])
    if "diameters_mm" in entries:
        levels = entries["diameters_mm"]
        entries["diameters_mm"] = tuple(tuple(float(mm) for mm in level) for level in levels)
    return Detection(**entries)


def _take(table: dict[str, Any], name: str, required: _Kinds, optional=None, others=None) -> dict:
    part = table.pop(name, None)
    if not isinstance(part, dict):
        raise ValueError(f"[{name}] is missing, or no table")
    return _checked(name, part, required, optional or {}, others)


def _checked(name: str, part: dict, required: _Kinds, optional: _Kinds, others=None) -> dict:
    """A copy of one table in which every entry is there and of the right kind."""
    of = f"[{name}] " if name else ""
    if missing := required.keys() - part.keys():
        raise ValueError(f"{of}{', '.join(sorted(missing))}: missing")
    kinds = required | optional
    for entry, value in part.items():
        if entry not in kinds and others is None:
            raise ValueError(f"{of}{entry}: unknown; known are {', '.join(sorted(kinds))}")
        words, is_right = kinds.get(entry, others)
        if not is_right(value):
            raise ValueError(f"{of}{entry}: expected {words}, got {value!r}")
    return dict(part)
