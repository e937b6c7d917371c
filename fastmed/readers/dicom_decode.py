"""Compressed DICOM pixels: decoded in this process, or by others where there are many slices.

The decoders for Python hold its lock while they work (two threads take as long as one), so that
only processes use more than one core. They are started for one series and end with it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import numpy as np

import fastmed
from fastmed.errors import SeriesError
from fastmed.readers.dicom_header import Header
from fastmed.readers.dicom_worker import decoded
from fastmed.readers.series import one_line

WORTH_PROCESSES = 64  # slices; below that the start of a process takes longer than it saves


class Decoder:
    """Decodes the slices of one series; call it from `threads` threads at once.

    Use it as a context manager: its processes, if any, end with it.
    """

    def __init__(self, slices: int, cores: int) -> None:
        self.threads = cores if slices >= WORTH_PROCESSES and sys.executable else 1
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        self._workers: list[subprocess.Popen] = []

    def __enter__(self) -> Decoder:
        package_folder = str(Path(fastmed.__file__).parents[1])
        search = [package_folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        for _ in range(self.threads if self.threads > 1 else 0):
            worker = subprocess.Popen(
                [sys.executable, "-m", "fastmed.readers.dicom_worker"],
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
        from pydicom.pixels import get_decoder
        from pydicom.uid import UID

        name = UID(header.transfer_syntax).name
        try:
            decoder = get_decoder(header.transfer_syntax)
        except NotImplementedError as error:
            raise SeriesError(
                f"{header.relative}: transfer syntax {name} is not supported; "
                "convert the series to an uncompressed or JPEG 2000 one"
            ) from error
        if not decoder.is_available:
            missing = "; ".join(decoder.missing_dependencies)
            raise SeriesError(f"{header.relative}: no decoder for {name} is installed ({missing})")
        try:
            pixels = self._by_worker(header.path) if self._workers else decoded(header.path)
        except RuntimeError as error:
            reason = one_line(error, header.path, header.relative)
            raise SeriesError(f"{header.relative} ({name}) cannot be decoded: {reason}") from error
        if pixels.shape != target.shape:
            raise SeriesError(
                f"{header.relative}: its pixels are {pixels.shape}, its header says {target.shape}"
            )
        target[...] = pixels

    def _by_worker(self, path: str) -> np.ndarray:
        worker = self._idle.get()
        try:
            worker.stdin.write(json.dumps(path).encode() + b"\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline() or '{"error": "its decoder crashed"}')
            if "error" in answer:
                raise RuntimeError(answer["error"])
            pixels = np.empty(answer["shape"], np.dtype(answer["dtype"]))
            if worker.stdout.readinto(memoryview(pixels).cast("B")) != pixels.nbytes:
                raise RuntimeError("its decoder crashed")
            return pixels
        except BrokenPipeError as error:
            raise RuntimeError("its decoder crashed") from error
        finally:
            self._idle.put(worker)
