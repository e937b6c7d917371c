"""A worker in which some series bring the process down, hang or fail; it is told which on its
command line: the fault, the stage, and the names of the scans' folders."""

import os
import signal
import sys
import time

from fastmed.inference import pipeline, series_folder, worker
from fastmed.inference.case import Model

FAULT, STAGE, SOURCES = sys.argv[1], sys.argv[2], sys.argv[3].split(",")


def bring_down():
    if FAULT == "lost":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if FAULT == "hang":
        time.sleep(600)
    if FAULT == "full":
        raise OSError(28, "No space left on device")
    if FAULT == "signalled":  # as all processes are by Ctrl-C, and by batch systems
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        return
    if FAULT.startswith("change:"):
        with open(FAULT.removeprefix("change:") + "/bundle.toml", "a") as file:
            file.write("\n# changed")
    os.kill(os.getpid(), getattr(signal, FAULT, signal.SIGSEGV))
    time.sleep(60)


def faulty(real, source_of):
    def call(*arguments, **options):
        if source_of(*arguments) in SOURCES:
            bring_down()
        return real(*arguments, **options)

    return call


if STAGE == "read":
    pipeline.read_series = faulty(pipeline.read_series, lambda entry: entry.source)
elif STAGE == "start":
    pipeline.Pipeline.run = lambda self: bring_down()
elif STAGE == "finish":
    real = series_folder.write_preview
    series_folder.write_preview = faulty(real, lambda volume, *_: volume.source)
else:
    grids = {}
    prepare, look = Model.prepare, Model.look

    def prepared(self, volume, **options):
        image, grid = prepare(self, volume, **options)
        grids[id(grid)] = volume.source
        return image, grid

    Model.prepare = prepared
    Model.look = faulty(look, lambda self, image, grid, *_: grids[id(grid)])
sys.exit(worker.main())
