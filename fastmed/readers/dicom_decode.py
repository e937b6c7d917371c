"""Compressed DICOM pixels: decoded in threads by imagecodecs, and what it leaves by pydicom.

pydicom's decoders hold Python's lock while they work (two threads take as long as one), so that
only processes use more than one core. Where a series has many slices that only they decode, some
are started for it and end with it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

import fastmed
from fastmed.errors import SeriesError
from fastmed.readers.dicom_codecs import decode_frame, has_codec
from fastmed.readers.dicom_header import NATIVE, Header
from fastmed.readers.dicom_quiet import quietly
from fastmed.readers.dicom_worker import decoded
from fastmed.readers.series import one_line

SLICES_PER_PROCESS = 32  # fewer would be decoded in the time that a process takes to start


@cache
def why_not(transfer_syntax: str) -> str:
    """Why no decoder here reads a transfer syntax, and what to do; "" where one does."""
    if has_codec(transfer_syntax):
        return ""
    from pydicom.pixels import get_decoder

    try:
        with quietly():
            decoder = get_decoder(transfer_syntax)
    except NotImplementedError:
        return (
            f"transfer syntax {_name(transfer_syntax)} is not supported; convert the series to an "
            "uncompressed or JPEG 2000 one"
        )
    if decoder.is_available:
        return ""
    missing = "; ".join(decoder.missing_dependencies)
    return f"no decoder for {_name(transfer_syntax)} is installed: {missing}"


class Decoder:
    """Decodes the slices of one series; call it from `threads` threads at once.

    Use it as a context manager: its processes, if any, end with it.
    """

    def __init__(self, headers: Sequence[Header], cores: int) -> None:
        compressed = [h.transfer_syntax for h in headers if h.transfer_syntax not in NATIVE]
        for_pydicom = sum(not has_codec(syntax) for syntax in compressed)
        worth = min(cores, for_pydicom // SLICES_PER_PROCESS)
        self._processes = worth if worth > 1 and sys.executable else 0
        self.threads = self._processes or (cores if for_pydicom == 0 else 1)
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        self._workers: list[subprocess.Popen] = []
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> Decoder:
        package_folder = str(Path(fastmed.__file__).parents[1])
        search = [package_folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        for _ in range(self._processes):
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "fastmed.readers.dicom_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            )
            self._workers.append(worker)
            self._idle.put(worker)
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()

    def decode(self, header: Header, target: np.ndarray) -> None:
        """Decodes one slice into `target` [H, W]. Raises SeriesError that names the file."""
        try:
            if decode_frame(header, target):
                return
            pixels = self._by_pydicom(header.path, header.frame)
        except RuntimeError as error:
            reason = one_line(error, header.path, header.relative)
            name = _name(header.transfer_syntax)
            raise SeriesError(f"{header.relative} ({name}) cannot be decoded: {reason}") from error
        if pixels.shape != target.shape:
            raise SeriesError(
                f"{header.relative}: its pixels are {pixels.shape}, its header says {target.shape}"
            )
        target[...] = pixels

    def _by_pydicom(self, path: str, frame: int) -> np.ndarray:
        if self._workers:
            return self._by_worker(path, frame)
        with self._one_at_a_time:
            return decoded(path, frame)

    def _by_worker(self, path: str, frame: int) -> np.ndarray:
        worker = self._idle.get()
        try:
            worker.stdin.write(json.dumps([path, frame]).encode() + b"\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline() or '{"error": "its decoder crashed"}')
            if "error" in answer:
                raise RuntimeError(answer["error"])
            pixels = np.empty(answer["shape"], np.dtype(answer["dtype"]))
            if worker.stdout.readinto(memoryview(pixels).cast("B")) != pixels.nbytes:
                raise RuntimeError("its decoder crashed")
            return pixels
        except (BrokenPipeError, json.JSONDecodeError) as error:  # it ended, perhaps in its answer
            raise RuntimeError("its decoder crashed") from error
        finally:
            self._idle.put(worker)


def _name(transfer_syntax: str) -> str:
    from pydicom.uid import UID_dictionary

    return UID_dictionary.get(transfer_syntax, ("unknown or private",))[0]
