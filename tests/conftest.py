"""What every test may ask for."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long a busy machine takes to draw an example says nothing about the code.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

_PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or fills the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTMED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def scans() -> Path:
    """The folder of real scans: FASTMED_SCANS, else ../shared/data beside the project."""
    folder = Path(os.environ.get("FASTMED_SCANS", _PROJECT.parent / "shared" / "data"))
    if not (folder / "ct-abdomen-dicom").is_dir():
        pytest.skip(f"no real scans in {folder}; FASTMED_SCANS names another folder")
    return folder


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """The demo bundle (liver) that ships with the package."""
    from fastmed import bundle

    return bundle.demo_path()


@pytest.fixture(scope="session")
def tiny_spec():
    """A liver model of small tiles on a 3 mm grid."""
    from fastmed.spec import Label, Network, Spec

    return Spec(
        name="tiny",
        task="segmentation",
        labels=(Label(1, "liver", "10200004"),),
        spacing_mm_zyx=(3.0, 3.0, 3.0),
        window_hu=(-160.0, 240.0),
        tile_zyx=(32, 32, 32),
        network=Network("unet3d", {"base_channels": 8, "num_classes": 2}),
        trained_on="nothing: fresh weights",
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_spec, tmp_path_factory) -> Path:
    """A bundle of fresh, seeded weights, exported to ONNX. Tests copy it before they damage it."""
    import torch

    from fastmed import bundle, exporter, models

    path = tmp_path_factory.mktemp("bundles") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = models.build(tiny_spec.network.name, **tiny_spec.network.arguments)
    bundle.write(path, tiny_spec, network)
    exporter.export(path)
    return path


@pytest.fixture(scope="session")
def phantom_archive(tmp_path_factory) -> list[Path]:
    """The phantom archive with its usual flaws, its pixels eight times as wide as usual.

    Returns the folders of scans and of truth.
    """
    from dataclasses import replace

    from fastmed import phantom_scans
    from fastmed.geometry import Geometry

    write = phantom_scans._write

    def smaller(scan, output):
        steps = scan.geometry.steps_lps_mm * [[1], [8], [8]]
        depth, height, width = scan.geometry.shape_zyx
        shape = (depth, height // 8, width // 8)
        small = Geometry.from_axes(shape, scan.geometry.origin_lps_mm, steps)
        write(replace(scan, geometry=small), output)

    folder = tmp_path_factory.mktemp("phantoms") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_scans, "_write", smaller)
        return phantom_scans.write_phantoms("archive", folder, count=2, seed=1)
