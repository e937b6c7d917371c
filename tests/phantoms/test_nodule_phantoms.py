"""Nodule phantoms: boxes that hold what was drawn, in lungs, by seed; as tables and as VOC XML."""

import csv
import xml.etree.ElementTree as ElementTree

import numpy as np
import pydicom
import pytest
import torch

import fastmed
from fastmed import phantom_nodules
from fastmed.cli import main
from fastmed.errors import UsageError
from fastmed.geometry import Geometry
from fastmed.phantom import nodules
from fastmed.phantom.nodule_shapes import draw_lump, draw_nodule
from fastmed.phantom_scans import write_phantoms
from fastmed.volume import Volume

CHEST = Geometry.from_spacing((76, 64, 84), (4.0, 4.0, 4.0), (-166.0, -121.0, -160.0))
FINE = Geometry.from_spacing((30, 40, 40), (1.5, 1.0, 1.0), (-20.0, 30.0, -22.0))
KINDS = ("solid", "part-solid", "ground-glass")


@pytest.fixture(scope="module")
def chests():
    return [nodules.nodule_chest(CHEST, seed, count=4) for seed in range(3)]


@pytest.fixture
def small_grids(monkeypatch):
    for name in ("_grid", "_square_grid"):
        monkeypatch.setattr(phantom_nodules, name, lambda seed: CHEST)


def drawn(kind, diameter, seed=0, lungs_mm=99.0, geometry=FINE):
    hu = np.full(geometry.shape_zyx, -850, dtype=np.float32)
    lungs = np.full(geometry.shape_zyx, lungs_mm, dtype=np.float32)
    middle = geometry.to_world((np.array(geometry.shape_zyx) - 1) / 2)
    rng = np.random.default_rng(seed)
    made = draw_nodule(rng, geometry, hu, lungs, kind, middle, diameter, 40.0)
    return made[0], hu


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("diameter", [5.0, 11.0, 19.0])
def test_a_nodule_has_the_diameter_asked_for_and_a_box_around_its_voxels(kind, diameter):
    for seed in range(4):
        nodule, _ = drawn(kind, diameter, seed)
        assert nodule.diameter_mm == pytest.approx(diameter, abs=0.45)
        at = FINE.to_world(np.argwhere(nodule.inside) + nodule.first_zyx)
        half = np.array(FINE.spacing_mm_zyx)[::-1] / 2
        # A voxel half filled reaches out of the box by half of itself at most.
        assert (at.min(axis=0) >= np.array(nodule.box_lps_mm[:3]) - 1e-6).all()
        assert (at.max(axis=0) <= np.array(nodule.box_lps_mm[3:]) + 1e-6).all()
        assert (at.min(axis=0) - half < np.array(nodule.box_lps_mm[:3]) + 2 * half).all()
        assert (at.max(axis=0) + half > np.array(nodule.box_lps_mm[3:]) - 2 * half).all()


@pytest.mark.parametrize(("kind", "low", "high"), [("solid", 30, 50), ("ground-glass", -650, -350)])
def test_kinds_differ_in_density(kind, low, high):
    nodule, hu = drawn(kind, 14.0)
    z, y, x = np.rint(FINE.to_index(nodule.centre_lps_mm)).astype(int)
    assert low < np.median(hu[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]) < high


def test_a_part_solid_nodule_has_a_dense_core_in_ground_glass():
    nodule, hu = drawn("part-solid", 16.0)
    values = hu[
        tuple(slice(a, a + n) for a, n in zip(nodule.first_zyx, nodule.inside.shape, strict=True))
    ]
    values = values[nodule.inside]
    assert 0.03 < (values > -50).mean() < 0.5
    assert ((values > -700) & (values < -300)).mean() > 0.3


def test_a_nodule_ends_at_the_pleura():
    hu = np.full(FINE.shape_zyx, -850, dtype=np.float32)
    x = FINE.origin_lps_mm[0] + np.arange(40)
    lungs = np.broadcast_to(2.0 - x, FINE.shape_zyx).astype(np.float32)  # the wall stands at x = 2
    middle = FINE.to_world((np.array(FINE.shape_zyx) - 1) / 2)
    rng = np.random.default_rng(1)
    nodule, *_ = draw_nodule(rng, FINE, hu, lungs, "solid", middle, 14.0, 40.0)
    assert nodule.box_lps_mm[3] == pytest.approx(2, abs=0.35)
    assert nodule.box_lps_mm[0] < -4


@pytest.mark.parametrize("seed", range(6))
def test_a_lump_is_round_in_all_directions(seed):
    lump = draw_lump(np.random.default_rng(seed), 10.0)
    at = np.linspace(-9, 9, 61, dtype=np.float32)
    inside = lump.depth_mm(at[None, None, :], at[None, :, None], at[:, None, None]) > 0
    places = at[np.argwhere(inside)]
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(places.T)))
    assert spread[2] / spread[0] < 1.9


def test_nodules_of_a_chest_lie_in_its_lungs_apart_and_in_the_range(chests):
    for made in chests:
        assert 1 <= len(made.nodules) <= 4
        for nodule in made.nodules:
            assert 3.5 < nodule.diameter_mm < 20.5
            box = tuple(
                slice(a, a + n) for a, n in zip(nodule.first_zyx, nodule.inside.shape, strict=True)
            )
            assert made.lungs[box][nodule.inside].mean() > 0.9
            others = [o for o in made.nodules if o is not nodule]
            for other in others:
                gap = np.linalg.norm(nodule.centre_lps_mm - other.centre_lps_mm)
                assert gap > (nodule.diameter_mm + other.diameter_mm) / 2
        assert all(nodule.diameter_mm < 3 + 1.5 for nodule in made.tiny)  # on voxels of 4 mm


def test_the_same_seed_gives_the_same_scan_and_leaves_the_global_random_state(chests):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    again = nodules.nodule_chest(CHEST, 1, count=4)
    assert np.array_equal(again.volume.voxels, chests[1].volume.voxels)
    assert [n.box_lps_mm for n in again.nodules] == [n.box_lps_mm for n in chests[1].nodules]
    assert not np.array_equal(chests[0].volume.voxels, chests[1].volume.voxels)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_tables_list_every_scan_with_boxes_and_centres_that_agree(tmp_path, small_grids):
    made = write_phantoms("nodules", tmp_path / "p", count=3, seed=8)
    assert [p.name for p in made] == [
        "scans", "boxes.csv", "annotations.csv", "annotations_excluded.csv", "seriesuids.csv",
    ]  # fmt: skip
    boxes = rows(tmp_path / "p/boxes.csv")
    names = [f"nodules-{seed:05d}" for seed in (8, 9, 10)]
    assert sorted({row["path"] for row in boxes}) == [f"scans/{n}.nii.gz" for n in names]
    assert {p.name for p in (tmp_path / "p/scans").iterdir()} == {f"{n}.nii.gz" for n in names}
    (empty,) = [row for row in boxes if not row["label"]]
    assert empty["path"] == "scans/nodules-00009.nii.gz"
    assert [empty[k] for k in ("x1", "y1", "z1", "x2", "y2", "z2")] == [""] * 6
    assert (tmp_path / "p/seriesuids.csv").read_text().split() == names
    annotations = rows(tmp_path / "p/annotations.csv")
    full = [row for row in boxes if row["label"]]
    assert len(full) == len(annotations) > 0
    for box, mark in zip(full, annotations, strict=True):
        assert box["path"] == f"scans/{mark['seriesuid']}.nii.gz"
        corners = np.array([float(box[k]) for k in ("x1", "y1", "z1", "x2", "y2", "z2")])
        low, high = corners[:3], corners[3:]
        centre = [float(mark[k]) for k in ("coordX", "coordY", "coordZ")]
        np.testing.assert_allclose(centre, (low + high) / 2, atol=2e-3)
        assert float(mark["diameter_mm"]) == pytest.approx((high - low).mean(), abs=2e-3)


def test_dicom_and_voc_hold_the_drawn_extents_of_each_slice(tmp_path, small_grids):
    output = tmp_path / "p"
    command = ["phantom", "nodules", "--output", str(output), "--seed", "5", "--format", "dicom"]
    assert main(command) == 0
    made = phantom_nodules._made(5, CHEST)
    expected = {}
    for nodule in made.nodules:
        for place in np.argwhere(nodule.inside) + nodule.first_zyx:
            expected.setdefault((place[0], nodule.box_lps_mm), []).append(place[1:])
    boxes = {}
    for (z, _), places in expected.items():
        (ymin, xmin), (ymax, xmax) = np.min(places, axis=0), np.max(places, axis=0)
        if xmax > xmin and ymax > ymin:
            boxes.setdefault(z, set()).add((xmin, ymin, xmax, ymax))
    assert boxes
    headers = [pydicom.dcmread(p) for p in sorted((output / "dicom").rglob("*.dcm"))]
    uids = {str(h.SOPInstanceUID): h.InstanceNumber - 1 for h in headers}
    found = {}
    for path in (output / "annotations").rglob("*.xml"):
        root = ElementTree.parse(path).getroot()
        assert [root.findtext(f"size/{k}") for k in ("width", "height")] == ["84", "64"]
        assert path.parent.name == "B0005"
        assert {o.findtext("name") for o in root.iter("object")} == {"B"}
        found[uids[path.stem]] = {
            tuple(int(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            for o in root.iter("object")
        }
    assert found == boxes
    (volume,) = fastmed.read(output / "dicom")
    assert np.array_equal(volume.hu(), made.volume.voxels)
    assert {row["patient"] for row in rows(output / "boxes.csv")} == {"Lung_Dx-B0005"}


def test_a_scan_that_is_given_changes_at_its_nodules_alone():
    geometry = Geometry.from_axes((30, 44, 44), (40, 50, -40), [(0, 0, 2), (0, -2, 0), (-2, 0, 0)])
    rng = np.random.default_rng(0)
    voxels = (-820 + rng.normal(0, 20, geometry.shape_zyx)).astype(np.int16)
    lungs = np.zeros(geometry.shape_zyx, dtype=bool)
    lungs[3:-3, 4:-4, 4:-4] = True
    voxels[~lungs] = 30
    voxels[:, 20:23, 20:23] = 150
    scan = Volume(voxels, geometry, name="given", slope=2.0, intercept=0.0)
    scan = Volume((voxels // 2).astype(np.int16), geometry, slope=2.0, name="given")
    made = nodules.insert(scan, lungs, 3, count=4)
    assert len(made.nodules) >= 3
    changed = made.volume.voxels != scan.voxels
    near = np.zeros_like(changed)
    world = geometry.to_world(np.stack(np.indices(geometry.shape_zyx), axis=-1))
    for nodule in made.nodules:
        low, high = np.array(nodule.box_lps_mm[:3]) - 6, np.array(nodule.box_lps_mm[3:]) + 6
        near |= ((world > low) & (world < high)).all(axis=-1)
        at = np.argwhere(nodule.inside) + nodule.first_zyx
        places = geometry.to_world(at)
        assert (places >= np.array(nodule.box_lps_mm[:3])).all()
        assert (places <= np.array(nodule.box_lps_mm[3:])).all()
        assert made.volume.hu()[tuple(at.T)].mean() > -700
    assert changed.any()
    assert not (changed & ~near).any()
    vessel = (slice(None), slice(20, 23), slice(20, 23))
    assert (made.volume.hu()[vessel] > 0).all()  # shines through
    assert np.array_equal(nodules.insert(scan, lungs, 3, count=4).volume.voxels, made.volume.voxels)


def test_the_lower_lungs_of_a_real_scan_take_nodules_and_its_bowel_none(tmp_path, scans):
    import nibabel

    path = scans / "ct-torso-nifti" / "ct.nii.gz"
    write_phantoms("nodules", tmp_path / "p", count=2, seed=2, into=path)
    labels = np.asarray(nibabel.load(scans / "ct-torso-nifti/labels.nii.gz").dataobj).T
    found = rows(tmp_path / "p/boxes.csv")
    assert len(found) >= 2
    (made,) = fastmed.read(tmp_path / "p" / found[0]["path"])
    for row in found:
        low, high = (np.array([float(row[f"{axis}{end}"]) for axis in "xyz"]) for end in (1, 2))
        index = tuple(np.rint(made.geometry.to_index((low + high) / 2)).astype(int))
        around = labels[tuple(slice(max(k - 1, 0), k + 2) for k in index)]
        assert np.isin(around, range(10, 15)).any()


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("chest", {"form": "dicom"}, "--format dicom: phantom chest does not take it"),
        ("liver", {"into": "ct.nii"}, "--into ct.nii: phantom liver does not take it"),
        ("nodules", {"form": "png"}, "--format png: expected one of nifti, dicom"),
        ("nodules", {"positive_share": 0.5}, "phantom nodules has none"),
    ],
)
def test_settings_of_other_kinds_are_refused_by_name(tmp_path, kind, wrong, said):
    with pytest.raises(UsageError, match=said):
        write_phantoms(kind, tmp_path / "p", **wrong)
    assert not (tmp_path / "p").exists()
