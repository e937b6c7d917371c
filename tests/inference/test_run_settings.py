"""The key of a run's results: whatever decides their bytes changes it, and nothing else does."""

from dataclasses import replace

import pytest

import fastmed
from fastmed.inference.archive import FORMATS
from fastmed.inference.run_plan import asked_for
from fastmed.inference.run_settings import RunSettings

SETTINGS = RunSettings(
    bundle="/bundle",
    output="/out",
    engine="auto",
    device="auto",
    precision="auto",
    strict=True,
    formats=("json", "nifti"),
    attempts=3,
    memory_bytes=10**9,
    tune_malloc=False,
    asked_for=(("/in",), (), ("",)),
)
FACTS = {
    "model": {"name": "liver", "sha256": {"weights.safetensors": "0a"}},
    "engine": "torch",
    "engine_choice": "as asked",
    "device": "cpu",
    "precision": "fp32",
    "seen_by": {"overlap": 0.5},
    "versions": {"torch": "2.13"},
}
OTHER_FACTS = {
    "model": {"name": "liver", "sha256": {"weights.safetensors": "0b"}},
    "engine": "ov",
    "device": "cuda:0",
    "precision": "bf16",
    "seen_by": {"overlap": 0.25},
}
SAME_FACTS = {"engine_choice": "the fastest", "versions": {"torch": "2.14"}}
SAME_SETTINGS = {
    "bundle": "/another/bundle",
    "output": "/another",
    "attempts": 9,
    "memory_bytes": 1,
    "tune_malloc": True,
    "asked_for": (("/another",), (), ("2/3",)),
}
OF_A_SERIES = {"nifti", "json", "png", "voc", "sr", "report"}  # the report has thumbnails there


def key(facts=FACTS, **settings):
    return replace(SETTINGS, **settings).results_key(facts)


@pytest.mark.parametrize("fact", OTHER_FACTS)
def test_another_model_engine_or_device_is_another_key(fact):
    assert key(FACTS | {fact: OTHER_FACTS[fact]}) != key()


def test_another_version_of_fastmed_is_another_key(monkeypatch):
    before = key()
    monkeypatch.setattr(fastmed, "__version__", "99.0")
    assert key() != before


@pytest.mark.parametrize("name", FORMATS)
def test_formats_count_where_they_are_files_of_a_series(name):
    with_it = (*SETTINGS.formats, name) if name not in SETTINGS.formats else (name,)
    assert (key(formats=tuple(sorted(with_it))) != key()) == (name in OF_A_SERIES)


@pytest.mark.parametrize("setting", SAME_SETTINGS)
def test_what_decides_no_byte_does_not_count(setting):
    assert key(**{setting: SAME_SETTINGS[setting]}) == key()


@pytest.mark.parametrize("fact", SAME_FACTS)
def test_what_is_said_of_a_model_does_not_count(fact):
    assert key(FACTS | {fact: SAME_FACTS[fact]}) == key()


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ({"strict": False}, False),
        ({"formats": ("json",)}, False),
        ({"asked_for": (("/another",), (), ("",))}, False),
        ({"asked_for": (("/in",), ("1.2.3",), ("",))}, False),
        ({"asked_for": (("/in",), (), ("2/3",))}, False),
        ({"attempts": 9, "memory_bytes": 1, "tune_malloc": True}, True),
    ],
    ids=str,
)
def test_who_was_asked_for_something_else_may_not_share_a_folder(other, is_same):
    asked = [asked_for(settings, FACTS) for settings in (SETTINGS, replace(SETTINGS, **other))]
    assert (asked[0] == asked[1]) == is_same
