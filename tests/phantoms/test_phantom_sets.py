"""Training phantoms: same seed, same bytes; truth on the image's grid; hard for a threshold."""

import csv
import hashlib
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import fastmed
from fastmed import phantom, phantom_sets
from fastmed.cli import main
from fastmed.errors import UsageError
from fastmed.geometry import Geometry
from fastmed.phantom_scans import write_phantoms

TOOLS = Path(__file__).parents[2] / "tools"
CHEST = Geometry.from_spacing((54, 60, 76), (5.0, 5.0, 5.0), (-187.5, -137.5, -135.0))
ABDOMEN = Geometry.from_spacing((40, 80, 88), (5.0, 4.8, 4.8), (-209.0, -190.0, -165.0))
TRAINING_KINDS = ("liver", "chest", "lungs", "lesions")


@pytest.fixture
def small_grids(monkeypatch):
    monkeypatch.setattr(phantom_sets, "_abdomen_grid", lambda seed: ABDOMEN)
    monkeypatch.setattr(phantom_sets, "_chest_grid", lambda seed: CHEST)


@pytest.fixture(scope="module")
def ill_chests():
    """Five chests with and without their lesions: [(with, without)]."""
    return [(phantom.chest(CHEST, s, lesion=True), phantom.chest(CHEST, s)) for s in range(5)]


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_the_same_seed_gives_the_same_files(tmp_path, small_grids, kind):
    for name in ("one", "two"):
        write_phantoms(kind, tmp_path / name, count=2, seed=7)
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in ("one", "two")
    )
    assert one == two
    assert len(one) >= 3
    write_phantoms(kind, tmp_path / "later", count=1, seed=8)
    for path in (tmp_path / "later").rglob("*.*"):
        if path.suffix != ".csv":
            assert path.read_bytes() == one[path.relative_to(tmp_path / "later")]


@pytest.mark.parametrize("kind", TRAINING_KINDS)
def test_the_global_random_state_stays_untouched(tmp_path, small_grids, kind):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    write_phantoms(kind, tmp_path / "p")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_abdomen_phantoms_keep_their_voxels():
    """They are the benches' and the demonstration's; the digest is of the first version."""
    grid = Geometry.from_spacing((12, 40, 44), (15.0, 9.6, 9.6), (-206.4, -187.2, -165.0))
    volume, truth = phantom.abdomen(grid, 3)
    digest = hashlib.sha256(volume.voxels.tobytes() + truth.labels.tobytes()).hexdigest()
    assert digest[:16] == "56c4e7250e7885cb"


def test_a_liver_phantom_lies_on_the_grid_of_its_label(tmp_path, small_grids):
    made = write_phantoms("liver", tmp_path / "p", count=2)
    assert made == [tmp_path / "p" / "image", tmp_path / "p" / "label"]
    names = [sorted(p.name for p in folder.iterdir()) for folder in made]
    assert names[0] == names[1] == ["liver-00000.nii.gz", "liver-00001.nii.gz"]
    (volume,) = fastmed.read(made[0] / names[0][0])
    label = nibabel.load(made[1] / names[0][0])
    np.testing.assert_allclose(label.affine, volume.geometry.to_ras_xyz(), atol=1e-3)
    liver = np.asarray(label.dataobj).T
    assert set(np.unique(liver)) == {0, 1}
    assert 600 < liver.sum() * volume.geometry.voxel_volume_mm3 / 1000 < 3500
    assert 30 < np.median(volume.hu()[liver == 1]) < 150
    assert volume.hu().min() < -900


def test_neighbours_of_the_liver_share_its_intensity():
    """In a ring of 15 mm around it, many voxels lie within the spread of the liver itself."""
    from scipy import ndimage

    shares = []
    for seed in range(4):
        volume, truth = phantom.textured_abdomen(ABDOMEN, seed)
        liver = truth.labels == 1
        low, high = np.percentile(volume.voxels[liver], (10, 90))
        ring = ndimage.binary_dilation(liver, iterations=3) & ~liver & (volume.voxels > -50)
        around = volume.voxels[ring]
        shares.append(((around > low) & (around < high)).mean())
    assert np.mean(shares) > 0.25


def test_a_lesion_lies_in_a_lung_and_changes_nothing_else(ill_chests):
    for ill, well in ill_chests:
        assert not well.lesion.any()
        assert (ill.lesion & ~ill.lungs).sum() == 0
        assert np.array_equal(ill.lungs, well.lungs)
        milliliters = ill.lesion.sum() * CHEST.voxel_volume_mm3 / 1000
        assert 1 < milliliters < 60
        added = ill.volume.voxels[ill.lesion].astype(float) - well.volume.voxels[ill.lesion]
        assert added.mean() > 100
        changed = ill.volume.voxels != well.volume.voxels
        assert changed.mean() < 0.03


def test_lungs_are_air_in_both_halves_of_the_chest(ill_chests):
    for _, well in ill_chests:
        assert -900 < np.median(well.volume.voxels[well.lungs]) < -700
        half = CHEST.shape_zyx[2] // 2
        liters = [
            side.sum() * CHEST.voxel_volume_mm3 / 1e6
            for side in (well.lungs[..., :half], well.lungs[..., half:])
        ]
        assert min(liters) > 0.8
        assert sum(liters) < 8


def test_lungs_are_found_by_the_usual_steps(ill_chests, monkeypatch):
    """Air below -320 HU, what touches the border removed, holes filled slice by slice."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import threshold_baseline

    for _, well in ill_chests:
        found = threshold_baseline.lung_mask(well.volume.hu()) > 0
        dice = 2 * (found & well.lungs).sum() / (found.sum() + well.lungs.sum())
        assert dice > 0.85


@pytest.mark.parametrize(("share", "expected"), [(None, 2), (0.5, 10), (0.0, 0), (1.0, 20)])
def test_the_share_of_positives_is_the_one_asked_for(tmp_path, monkeypatch, share, expected):
    tiny = Geometry.from_spacing((4, 12, 15), (60.0, 25.0, 25.0), (-180.0, -140.0, -90.0))
    monkeypatch.setattr(phantom_sets, "_chest_grid", lambda seed: tiny)
    scans, table = write_phantoms("chest", tmp_path / "p", count=20, positive_share=share)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert sum(int(row["label"]) for row in rows) == expected
    assert {scans.parent / row["path"] for row in rows} == set(scans.iterdir())
    assert len({row["patient"] for row in rows}) == 20


@pytest.mark.parametrize("kind", ["lungs", "lesions"])
def test_grey_images_have_masks_of_0_and_255_by_equal_names(tmp_path, kind):
    images, labels = write_phantoms(kind, tmp_path / "p", count=2)
    assert sorted(p.name for p in images.iterdir()) == sorted(p.name for p in labels.iterdir())
    for path in images.iterdir():
        image, mask = (np.asarray(Image.open(folder / path.name)) for folder in (images, labels))
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == mask.shape
        assert set(np.unique(mask)) == {0, 255}
        assert image.std() > 5


def test_slices_of_one_chest_are_named_by_patient(tmp_path):
    images, _ = write_phantoms("lungs", tmp_path / "p", count=2, seed=4)
    patients = [p.name.rsplit("-", 1)[0] for p in sorted(images.iterdir())]
    assert patients == ["chest-00004"] * 8 + ["chest-00005"] * 8


def test_lesion_slices_differ_and_stand_out():
    made = [phantom.lesion_slice(seed) for seed in range(12)]
    assert len({slice_.image.tobytes() for slice_ in made}) == 12
    for slice_ in made:
        share = (slice_.mask > 0).mean()
        assert 0.005 < share < 0.2
        border = slice_.mask[[0, -1]].any() or slice_.mask[:, [0, -1]].any()
        assert not border


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("chest", {"positive_share": 1.5}, "--positive-share 1.5: expected 0 to 1"),
        ("chest", {"positive_share": float("nan")}, "--positive-share nan: expected 0 to 1"),
        ("liver", {"positive_share": 0.5}, "phantom liver has none"),
        ("liver", {"count": 0}, "--count 0: expected at least 1"),
        ("lesions", {"seed": -1}, "--seed -1: expected 0 or more"),
        ("heart", {}, "expected one of abdomen, archive, liver, chest, lungs, lesions"),
    ],
)
def test_wrong_calls_are_named_before_anything_is_written(tmp_path, kind, wrong, said):
    with pytest.raises(UsageError, match=said):
        write_phantoms(kind, tmp_path / "p", **wrong)
    assert not (tmp_path / "p").exists()


def test_the_command_writes_a_training_set(tmp_path, capsys, small_grids):
    output = tmp_path / "p"
    command = ["phantom", "chest", "--output", str(output), "--positive-share", "1"]
    assert main(command) == 0
    assert capsys.readouterr().out.split() == [str(output / "scans"), str(output / "labels.csv")]
    assert (output / "labels.csv").read_text().splitlines() == [
        "path,patient,label",
        "scans/chest-00000.nii.gz,patient-00000,1",
    ]


def test_a_threshold_leaves_the_liver_and_its_neighbours_in_one_piece(tmp_path, monkeypatch):
    """The full search is tools/threshold_baseline.py; here, a window for each of few scans."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import threshold_baseline as baseline

    monkeypatch.setattr(baseline, "LIVER_LOW_HU", (10, 50))
    monkeypatch.setattr(baseline, "LIVER_HIGH_HU", (120, 160))
    monkeypatch.setattr(phantom_sets, "_abdomen_grid", lambda seed: ABDOMEN)
    images, labels = write_phantoms("liver", tmp_path / "p", count=5)
    scores = [
        baseline.liver_scores((path, labels / path.name)) for path in sorted(images.iterdir())
    ]
    best = max(np.mean([score[choice] for score in scores]) for choice in scores[0])
    assert 0.1 < best < 0.75
    assert "threshold_baseline" in sys.modules
