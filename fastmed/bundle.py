"""Bundle: a deployable model in one folder: bundle.toml, weights.safetensors, model.onnx."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from fastmed import models
from fastmed.errors import BundleError
from fastmed.spec import Label, Network, Spec

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
        except (ValueError, TypeError) as error:
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
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise BundleError(f"bundle {path}: {SPEC_FILE}: {error}") from error


def write(path: str | Path, spec: Spec, network: nn.Module) -> Bundle:
    """Writes bundle.toml and weights.safetensors into the folder `path`, made where it is absent.

    An ONNX file of earlier weights is removed: it would no longer be this model.
    """
    import tomli_w
    from safetensors.torch import save_file

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / ONNX_FILE).unlink(missing_ok=True)
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, path / WEIGHTS_FILE)
    text = tomli_w.dumps(_table(spec), multiline_strings=True)
    (path / SPEC_FILE).write_text(text, encoding="utf-8")
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


def _spec(table: dict[str, Any]) -> Spec:
    """Turns the parsed TOML into a Spec; raises ValueError for what is missing or unknown."""
    table = dict(table)
    if table.pop("format", None) != _FORMAT:
        raise ValueError(f"format: expected {_FORMAT}")
    grid = _take(table, "grid", {"spacing_mm_zyx", "window_hu"}, {"outside_hu"})
    tiles = _take(table, "tiles", {"size_zyx"}, {"overlap", "size_multiple"})
    labels = table.pop("labels", None)
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise ValueError("[[labels]]: expected a list of tables with value and name")
    network = table.pop("network", None)
    if network is not None:
        network = dict(network)
        network = Network(network.pop("name"), network)
    top = _checked("bundle", table, {"name", "task"}, {"trained_on", "notice"})
    return Spec(
        labels=tuple(
            Label(**_checked("labels", label, {"value", "name"}, {"snomed_ct"})) for label in labels
        ),
        spacing_mm_zyx=tuple(float(s) for s in grid.pop("spacing_mm_zyx")),
        window_hu=tuple(float(v) for v in grid.pop("window_hu")),
        tile_zyx=tuple(tiles.pop("size_zyx")),
        network=network,
        **grid,
        **tiles,
        **top,
    )


def _take(table: dict[str, Any], name: str, required: set[str], optional: set[str]) -> dict:
    part = table.pop(name, None)
    if not isinstance(part, dict):
        raise ValueError(f"[{name}] is missing")
    return dict(_checked(name, part, required, optional))


def _checked(name: str, part: dict, required: set[str], optional: set[str]) -> dict:
    if missing := required - part.keys():
        raise ValueError(f"[{name}]: {', '.join(sorted(missing))} is missing")
    if unknown := part.keys() - required - optional:
        raise ValueError(f"[{name}]: {', '.join(sorted(unknown))} is unknown")
    return part
