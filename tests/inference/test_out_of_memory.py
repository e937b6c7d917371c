"""A GPU without room: smaller batches, then the CPU, and each scan says so."""

import json

import nibabel
import numpy as np
import pytest
import scans as make
import torch

import fastmed
from fastmed.inference import run_model
from fastmed.inference.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("Failed to allocate memory for requested buffer of size 1048576"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=str,
)
def test_libraries_say_it_in_several_ways(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("a bug"))
    assert not is_out_of_memory(ValueError("out of memory"))


class Small:
    """An engine that says it is a GPU, and has room for so many tiles at once."""

    def __init__(self, engine, room):
        self._engine, self._room = engine, room
        self.name, self.precision, self.say = "torch", "fp32", print
        self.device = "cuda:7"
        self.sizes = []

    def __call__(self, tiles):
        self.sizes.append(len(tiles))
        if len(tiles) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._engine(tiles)


@pytest.fixture
def run(tiny_bundle, tmp_path, monkeypatch):
    make.series(tmp_path / "in", make.volume((30, 60, 70)))
    real = run_model.load

    def run(room):
        def load(path, **options):
            from dataclasses import replace

            model = real(path, **options | {"device": "cpu"})
            run.engine = Small(model.engine, room)
            return replace(model, engine=run.engine)

        monkeypatch.setattr(run_model, "load", load)
        monkeypatch.setattr("fastmed.inference.case.to_grid", _on_cpu)
        options = {"model": tiny_bundle, "engine": "torch", "quiet": True}
        log = tmp_path / f"log{room}"
        done = fastmed.infer(tmp_path / "in", tmp_path / f"{room}", log=log, **options)
        (row,) = done.rows
        assert row.verdict == "done"
        events = [json.loads(line) for line in log.read_text().splitlines()]
        said = [event["reason"] for event in events if event["event"] == "fallback"]
        image = nibabel.load(done.output / "series" / row.name / "labels.nii.gz")
        return row.findings["warnings"], said, np.asarray(image.dataobj)

    return run


def _on_cpu(volume, spec, device):
    from fastmed.preprocessing import to_grid

    return to_grid(volume, spec, "cpu")


def test_it_asks_for_less_and_says_so(run):
    warnings, said, labels = run(4)
    assert (warnings, said) == ([], [])
    fewer, said, same = run(1)
    assert said == fewer
    assert fewer == [
        "cuda:7 ran out of memory: 2 of 4 tiles at once from here on",
        "cuda:7 ran out of memory: 1 of 2 tiles at once from here on",
    ]
    on_cpu, said, also_same = run(0)
    assert on_cpu[-1] == "cuda:7 ran out of memory with one tile: this scan ran on the CPU"
    assert len(said) == 3
    assert (labels == same).mean() > 0.9999
    assert (labels == also_same).mean() > 0.9999
