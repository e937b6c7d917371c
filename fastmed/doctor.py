"""Doctor: what this installation can do, and what it lacks."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
from dataclasses import dataclass

import torch

import fastmed
from fastmed import ops
from fastmed.cache_folder import cache_folder
from fastmed.inference import engines
from fastmed.inference.manifest import library_versions
from fastmed.ops._load import instruction_set

_LIBRARIES = (
    "torch", "numpy", "pydicom", "nibabel", "SimpleITK", "safetensors", "onnx", "onnxscript",
    "scipy", "rich", "highdicom", "defusedxml",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the report. advice: what to do; empty where all is well."""

    subject: str
    finding: str
    advice: str = ""


def doctor() -> list[Check]:
    """Looks at devices, engines, caches, readers and versions; runs each CPU kernel once."""
    checks = [
        Check("fastmed", fastmed.__version__),
        Check("python", f"{platform.python_version()} on {platform.machine()}"),
        Check("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"),
        Check("cpu instructions", f"the kernels use {instruction_set()}"),
        *_cuda(),
        *_kernels(),
    ]
    for name, version, install in engines.survey():
        checks.append(Check(f"engine {name}", version, install))
    checks += _reader()
    checks += _decoders()
    checks += [_cache(room) for room in ("engines", "training", "index")]
    for name, version in library_versions(_LIBRARIES).items():
        advice = f"pip install {name}" if version == "absent" else ""
        checks.append(Check(name, version, advice))
    return checks


def _cache(room: str) -> Check:
    folder = cache_folder(room)
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process removed it
            sizes.append(path.stat().st_size if path.is_file() else 0)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    can_write = place.is_dir() and os.access(place, os.W_OK)
    advice = "" if can_write else "cannot be written; name another folder in FASTMED_CACHE"
    return Check(f"cache {room}", f"{folder}, {sum(sizes) / 1e6:.0f} MB", advice)


def _cuda() -> list[Check]:
    if torch.version.cuda is None:
        return [Check("cuda", "this torch is built for CPUs")]
    if not torch.cuda.is_available():
        return [Check("cuda", f"torch has CUDA {torch.version.cuda} but sees no device")]
    return [
        Check(f"cuda:{k}", torch.cuda.get_device_name(k)) for k in range(torch.cuda.device_count())
    ]


def _kernels() -> list[Check]:
    volume = torch.arange(8, dtype=torch.int16).reshape(2, 2, 2)
    middle = torch.tensor([[1.0, 0, 0, 0.5], [0, 1, 0, 0.5], [0, 0, 1, 0.5]], dtype=torch.float64)
    value = float(ops.window_resample(volume, middle, (1, 1, 1)))
    label = int(ops.resample_argmax(torch.eye(2).reshape(2, 2, 1, 1), torch.eye(3, 4), (1, 1, 1)))
    counts = ops.overlap_counts(volume[None], volume[None], 8)[0, :, 0].tolist()
    good = value == 3.5 and label == 0 and counts == [1] * 8
    checks = [Check("kernels cpu", "loaded and right" if good else "WRONG RESULTS", "")]
    if not good:
        checks = [Check("kernels cpu", "WRONG RESULTS", "reinstall fastmed; do not use this one")]
    if torch.version.cuda is not None:
        built = importlib.util.find_spec("fastmed._C_cuda") is not None
        checks.append(
            Check(
                "kernels cuda",
                "built" if built else "absent",
                "" if built else "reinstall fastmed where nvcc is on the PATH",
            )
        )
    return checks


def _reader() -> list[Check]:
    from fastmed.readers.dicom_codecs import codecs
    from fastmed.readers.dicom_native import is_built

    native = Check("DICOM reader", "native, in threads")
    if not is_built():
        reinstall = "reinstall fastmed on a POSIX system with a C++ compiler"
        native = Check("DICOM reader", "pydicom alone, which is slower", reinstall)
    found = codecs()
    there = ", ".join(name for name, is_there in found.items() if is_there)
    if not there:
        lacking = "absent; what is compressed takes longer to read"
        return [native, Check("DICOM imagecodecs", lacking, "pip install imagecodecs")]
    missing = ", ".join(name for name, is_there in found.items() if not is_there)
    advice = f"install a build of imagecodecs with {missing}" if missing else ""
    return [native, Check("DICOM imagecodecs", f"decodes {there}", advice)]


def _decoders() -> list[Check]:
    from pydicom.pixels.decoders import (
        JPEG2000LosslessDecoder,
        JPEGBaseline8BitDecoder,
        JPEGLosslessSV1Decoder,
        JPEGLSLosslessDecoder,
        RLELosslessDecoder,
    )

    decoders = {
        "JPEG 2000": (JPEG2000LosslessDecoder, "pip install pylibjpeg pylibjpeg-openjpeg"),
        "JPEG-LS": (JPEGLSLosslessDecoder, "pip install pyjpegls"),
        "JPEG lossless": (JPEGLosslessSV1Decoder, "pip install python-gdcm"),
        "JPEG baseline": (JPEGBaseline8BitDecoder, "pip install python-gdcm"),
        "RLE": (RLELosslessDecoder, "pip install pylibjpeg pylibjpeg-rle"),
    }
    return [
        Check(
            f"DICOM {name}",
            ", ".join(decoder.available_plugins) if decoder.is_available else "absent",
            "" if decoder.is_available else install,
        )
        for name, (decoder, install) in decoders.items()
    ]
