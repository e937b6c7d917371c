"""A tiny training run, for the tests that watch one."""

import pytest
from training_runs import TINY, balls

import fastmed
from fastmed.training import loop
from fastmed.training.train import TrainingRun


@pytest.fixture(scope="session")
def ball_scans(tmp_path_factory):
    return balls(tmp_path_factory.mktemp("balls"))


@pytest.fixture
def train(ball_scans, tmp_path, tmp_path_factory, monkeypatch):
    """Trains the tiny run with more settings; each call into a folder of its own."""
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: True)  # it would hold for all tests

    def run(*settings: str, name: str = "run", **options) -> TrainingRun:
        return fastmed.train(
            "liver-unet3d", ball_scans, tmp_path / name, device="cpu", quiet=True,
            settings=[*TINY, *settings], **options,
        )  # fmt: skip

    return run
