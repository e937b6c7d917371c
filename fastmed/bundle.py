"""Bundle: a deployable model in one folder: bundle.toml, weights.safetensors, model.onnx."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from fastmed import models
from fastmed.errors import BundleError
from fastmed.spec import Label, Network, Spec
from fastmed.writers.atomic import write_atomically

SPEC_FILE = "bundle.toml"
WEIGHTS_FILE = "weights.safetensors"
ONNX_FILE = "model.onnx"
_FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A model folder whose bundle.toml has been read and checked."""

    path: Path
    spec: Spec

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS_FILE

    @property
    def onnx_path(self) -> Path:
        return self.path / ONNX_FILE

    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file that decides the model's output, by file name."""
        files = (SPEC_FILE, WEIGHTS_FILE, ONNX_FILE)
        return {f: file_sha256(self.path / f) for f in files if (self.path / f).is_file()}

    def network(self) -> nn.Module:
        """Builds the network with the bundle's weights, on the CPU, in eval mode.

        Raises BundleError where the network is not named, or the weights are absent, damaged or
        of another network. Nothing in the folder is executed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.spec.network is None:
            raise BundleError(f"bundle {self.path}: {SPEC_FILE} names no [network] to build")
        if not self.weights_path.is_file():
            raise BundleError(f"bundle {self.path}: {WEIGHTS_FILE} is missing")
        try:
            network = models.build(self.spec.network.name, **self.spec.network.arguments)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise BundleError(f"bundle {self.path}: [network] {error}") from error
        try:
            network.load_state_dict(load_file(self.weights_path))
        except (SafetensorError, OSError) as error:
            raise BundleError(
                f"bundle {self.path}: {WEIGHTS_FILE} cannot be read ({error}); fetch it again"
            ) from error
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise BundleError(
                f"bundle {self.path}: {WEIGHTS_FILE} does not fit {self.spec.network.name}: {first}"
            ) from error
        return network.eval()


def demo_path() -> Path:
    """The demo bundle (liver) that ships with the package."""
    return Path(str(resources.files("fastmed") / "bundles" / "demo-liver"))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: str | Path) -> Bundle:
    """Reads and checks a bundle's bundle.toml.

    Raises BundleError that names the folder, the entry and what was expected.
    """
    path = Path(path)
    try:
        text = (path / SPEC_FILE).read_text(encoding="utf-8")
        return Bundle(path, _spec(tomllib.loads(text)))
    except FileNotFoundError as error:
        raise BundleError(f"{path} is no bundle: it has no {SPEC_FILE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {path}: {SPEC_FILE} cannot be read ({error})") from error
    except ValueError as error:  # of tomllib, of the entries or of the Spec
        raise BundleError(f"bundle {path}: {SPEC_FILE}: {error}") from error


def write(path: str | Path, spec: Spec, network: nn.Module) -> Bundle:
    """Writes bundle.toml and weights.safetensors into the folder `path`, made where it is absent.

    An ONNX file of earlier weights is removed: it would no longer be this model. Raises
    FastmedError where the disk refuses.
    """
    import tomli_w
    from safetensors.torch import save

    path = Path(path)
    (path / ONNX_FILE).unlink(missing_ok=True)
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path / WEIGHTS_FILE, [save(weights)])
    text = tomli_w.dumps(_table(spec), multiline_strings=True)
    write_atomically(path / SPEC_FILE, [text.encode()])
    return Bundle(path, spec)


def _table(spec: Spec) -> dict[str, Any]:
    table: dict[str, Any] = {
        "format": _FORMAT,
        "name": spec.name,
        "task": spec.task,
        "trained_on": spec.trained_on,
        "notice": spec.notice,
        "grid": {
            "spacing_mm_zyx": list(spec.spacing_mm_zyx),
            "window_hu": list(spec.window_hu),
            "outside_hu": spec.outside_hu,
        },
        "tiles": {
            "size_zyx": list(spec.tile_zyx),
            "overlap": spec.overlap,
            "size_multiple": spec.size_multiple,
        },
        "labels": [
            {"value": label.value, "name": label.name, "snomed_ct": label.snomed_ct}
            for label in spec.labels
        ],
    }
    if spec.network is not None:
        table["network"] = {"name": spec.network.name, **spec.network.arguments}
    return table


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# What an entry of bundle.toml may be: in words, and how to tell.
_TEXT = ("a text", lambda value: isinstance(value, str))
_NUMBER = ("a number", _is_number)
_WHOLE = ("a whole number", _is_whole)
_NUMBERS = ("a list of numbers", lambda value: _is_list_of(value, _is_number))
_WHOLES = ("a list of whole numbers", lambda value: _is_list_of(value, _is_whole))
_TABLES = ("a list of tables", lambda value: _is_list_of(value, lambda v: isinstance(v, dict)))
_ANYTHING = ("anything", lambda value: True)
_Kinds = dict[str, tuple[str, Callable[[Any], bool]]]


def _is_list_of(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _spec(table: dict[str, Any]) -> Spec:
    """Turns the parsed TOML into a Spec; raises ValueError for what is missing or wrong."""
    table = dict(table)
    if table.pop("format", None) != _FORMAT:
        raise ValueError(f"format: expected {_FORMAT}")
    network = None
    if "network" in table:
        arguments = _take(table, "network", {"name": _TEXT}, others=_ANYTHING)
        network = Network(arguments.pop("name"), arguments)
    grid = _take(
        table, "grid", {"spacing_mm_zyx": _NUMBERS, "window_hu": _NUMBERS}, {"outside_hu": _NUMBER}
    )
    tiles = _take(
        table, "tiles", {"size_zyx": _WHOLES}, {"overlap": _NUMBER, "size_multiple": _WHOLE}
    )
    top = _checked(
        "",
        table,
        {"name": _TEXT, "task": _TEXT, "labels": _TABLES},
        {"trained_on": _TEXT, "notice": _TEXT},
    )
    labels = (
        Label(**_checked("labels", label, {"value": _WHOLE, "name": _TEXT}, {"snomed_ct": _TEXT}))
        for label in top.pop("labels")
    )
    return Spec(
        labels=tuple(labels),
        spacing_mm_zyx=tuple(float(s) for s in grid.pop("spacing_mm_zyx")),
        window_hu=tuple(float(v) for v in grid.pop("window_hu")),
        tile_zyx=tuple(tiles.pop("size_zyx")),
        network=network,
        **grid,
        **tiles,
        **top,
    )


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
