"""Bundle: a deployable model in one folder: bundle.toml, weights.safetensors, model*.onnx."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fastmed.errors import BundleError
from fastmed.spec import Spec
from fastmed.spec_toml import spec_from_table, spec_to_table
from fastmed.writers.atomic import write_atomically

if TYPE_CHECKING:  # who only asks what a model is for need not wait for torch
    from torch import nn

SPEC_FILE = "bundle.toml"
WEIGHTS_FILE = "weights.safetensors"
# The exported network by the precision that it computes in; TensorRT has an int8 of its own.
ONNX_FILES = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "bf16": "model.bf16.onnx",
    "int8": "model.int8.onnx",
    "int8-trt": "model.int8-trt.onnx",
}
_NO_WEIGHTS = (".md", ".txt", ".json", ".csv", ".png", ".tmp")


@dataclass(frozen=True)
class Bundle:
    """A model folder whose bundle.toml has been read and checked."""

    path: Path
    spec: Spec

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS_FILE

    def onnx_path(self, precision: str = "fp32") -> Path:
        """Where the network exported in a precision of ONNX_FILES is, or would be."""
        return self.path / ONNX_FILES[precision]

    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file that decides the model's output, by file name.

        Files of other names may be weights that an ONNX file refers to, unless they are for people.
        """
        named = (SPEC_FILE, WEIGHTS_FILE, *ONNX_FILES.values())
        present = {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}
        others = {f for f in present if not f.endswith(_NO_WEIGHTS) and f[0] != "."} - {*named}
        return {f: file_sha256(self.path / f) for f in (*named, *sorted(others)) if f in present}

    def network(self) -> nn.Module:
        """Builds the network with the bundle's weights, on the CPU, in eval mode.

        Raises BundleError where the network is not named, or the weights are absent, damaged or
        of another network. Nothing in the folder is executed.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from fastmed import models

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
        return Bundle(path, spec_from_table(tomllib.loads(text)))
    except FileNotFoundError as error:
        raise BundleError(f"{path} is no bundle: it has no {SPEC_FILE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {path}: {SPEC_FILE} cannot be read ({error})") from error
    except ValueError as error:  # of tomllib, of the entries or of the Spec
        raise BundleError(f"bundle {path}: {SPEC_FILE}: {error}") from error


def write(path: str | Path, spec: Spec, network: nn.Module) -> Bundle:
    """Writes bundle.toml and weights.safetensors into the folder `path`, made where it is absent.

    ONNX files of earlier weights are removed: they would no longer be this model. Raises
    FastmedError where the disk refuses.
    """
    import tomli_w
    from safetensors.torch import save

    path = Path(path)
    for file in ONNX_FILES.values():
        (path / file).unlink(missing_ok=True)
    weights = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    write_atomically(path / WEIGHTS_FILE, [save(weights)])
    text = tomli_w.dumps(spec_to_table(spec), multiline_strings=True)
    write_atomically(path / SPEC_FILE, [text.encode()])
    return Bundle(path, spec)
