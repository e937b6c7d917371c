"""What a detection's patches and scans are scored by is what inference would say of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_sets import SHAPE, scan, write_nifti
from test_truth_tables import FLAT, INSIDE, NODULES, table

from fastmed import losses
from fastmed.boxes import WEIGHTS_2D, WEIGHTS_3D, encode
from fastmed.geometry import Geometry
from fastmed.inference.case import Model
from fastmed.losses import Targets
from fastmed.tasks.candidates import default_boxes_of, tiles_of
from fastmed.training import loop
from fastmed.training.batches import Batch
from fastmed.training.box_loss import BoxLoss, grid_defaults
from fastmed.training.box_scores import best_ious, see_slices, slice_found, slice_truth, tiles_loss
from fastmed.training.cache import Cache
from fastmed.training.checkpoint import Progress
from fastmed.training.layouts import discover
from fastmed.training.pictures import Panel, panel_image, sample_panels
from fastmed.training.stored_case import prepare
from fastmed.training.tally import Tally

PATCH = (8, 16, 16)
TRUTH = torch.tensor([[3.0, 4.0, 2.0, 9.0, 11.0, 6.0]])


def answer(spec, size, box=None, label=1) -> torch.Tensor:
    """[N, 2K + classes]: background everywhere but where a default box says `box`, if one is."""
    defaults = default_boxes_of(spec, size)
    code = defaults.shape[1]
    output = torch.zeros(len(defaults), code + spec.num_classes)
    output[:, code] = 20.0
    if box is not None:
        weights = WEIGHTS_3D if code == 6 else WEIGHTS_2D
        output[7, :code] = encode(box, defaults[7], weights)
        output[7, code], output[7, code + label] = 0.0, 9.0
    return output


def test_the_best_iou_of_a_patch_is_that_of_a_finding_of_the_same_label():
    near = TRUTH[0] + torch.tensor([1.0, 0, 0, 1.0, 0, 0])
    outputs = torch.stack([
        answer(NODULES, PATCH, TRUTH[0]),
        answer(NODULES, PATCH, near),
        answer(NODULES, PATCH, TRUTH[0], label=2),
        answer(NODULES, PATCH),
        answer(NODULES, PATCH, TRUTH[0]),
    ])  # fmt: skip
    target = Targets(TRUTH, torch.tensor([1]))
    ignored = Targets(TRUTH, torch.tensor([-1]))
    found = best_ious(outputs, [target, target, target, target, ignored], PATCH, NODULES)
    assert found.tolist() == pytest.approx([1.0, 5 / 7, 0.0, 0.0], abs=1e-4)


def test_an_epochs_iou_is_the_mean_over_its_true_boxes():
    tally = Tally(NODULES, "cpu")
    image, target = torch.zeros(1, 1, *PATCH), Targets(TRUTH, torch.tensor([1]))
    nothing = Targets(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    for said, truth in ((TRUTH[0], target), (None, target), (TRUTH[0], nothing)):
        output = answer(NODULES, PATCH, said)[None]
        tally.add(torch.tensor(0.5), output, Batch(image, [truth], ("a",)))
    row = tally.row(SimpleNamespace(all_reduce=lambda value, reduce_op: value))
    assert row == {"train_loss": 0.5, "train_iou": pytest.approx(0.5, abs=1e-4)}


def test_an_epoch_without_a_true_box_has_no_iou():
    tally = Tally(NODULES, "cpu")
    nothing = Targets(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    batch = Batch(torch.zeros(1, 1, *PATCH), [nothing], ("a",))
    tally.add(torch.tensor(0.5), answer(NODULES, PATCH)[None], batch)
    row = tally.row(SimpleNamespace(all_reduce=lambda value, reduce_op: value))
    assert row == {"train_loss": 0.5, "train_iou": None}


@pytest.fixture
def stored(tmp_path):
    """A scan of several tiles with one finding."""
    volume = scan(0)
    write_nifti(tmp_path / "a.nii.gz", volume.voxels, volume.geometry)
    (case,) = discover(table(tmp_path, "boxes.csv", f"a.nii.gz,p,1,{INSIDE}"), NODULES)
    return prepare(case, NODULES, {})


def test_the_loss_of_a_scan_is_that_of_its_tiles_as_one_batch(stored):
    tiles = tiles_of(stored.grid.shape_zyx, NODULES)
    defaults, per_level = grid_defaults(NODULES, tiles.size_zyx)
    raw = torch.randn(
        len(tiles.corners), len(defaults), 9, generator=torch.Generator().manual_seed(1)
    )
    loss = BoxLoss("detection_focal", NODULES, (4, 8, 8))
    found = tiles_loss(raw, stored, NODULES, loss)
    shifted = []
    for z, y, x in tiles.corners:
        box = torch.from_numpy(np.array(stored.boxes))[:, :6] - torch.tensor([x, y, z] * 2)
        size = torch.tensor(tiles.size_zyx[::-1])
        low, high = (box[:, k : k + 3].clamp(-0.5).minimum(size - 0.5) for k in (0, 3))
        sides = box[:, 3:] - box[:, :3]
        middle, share = box.reshape(2, 3).mean(0), (high - low).prod() / sides.prod()
        if share == 0:
            shifted.append(Targets(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)))
            continue
        counts = share > 0.5 and (middle >= -0.5).all() and (middle < size - 0.5).all()
        shifted.append(Targets(torch.cat([low, high], 1), torch.tensor([1 if counts else -1])))
    assert sum(int((t.labels == 1).sum()) for t in shifted) >= 1
    whole = losses.build("detection_focal", num_classes=3, defaults=defaults, per_level=per_level)
    assert found == pytest.approx(float(whole(raw, shifted)), rel=1e-5)


def test_slices_are_scored_where_somebody_looked(tmp_path):
    volume = scan(0)
    write_nifti(tmp_path / "a.nii.gz", volume.voxels, volume.geometry)
    table(tmp_path, "slices.csv", "a.nii.gz,p,4,1,2,3,9,12", "a.nii.gz,p,6,,,,,")
    (case,) = discover(tmp_path, FLAT)
    stored = prepare(case, FLAT, {})
    box = torch.tensor([30.0, 40.0, 90.0, 110.0])
    raw = torch.stack([
        answer(FLAT, None, box if z in (4, 5) else None) for z in range(20)
    ])  # fmt: skip
    (boxes, scores, labels), (nothing, *_) = slice_found(raw[list(stored.slices)], FLAT)
    np.testing.assert_allclose(boxes, box[None].numpy(), atol=1e-3)
    assert (len(scores), labels.tolist(), len(nothing)) == (1, [1], 0)
    (true_boxes, true_labels), (none, _) = slice_truth(stored)
    scale = np.array([300 / 28, 300 / 24] * 2)
    expected = (np.array([2, 3, 9, 12]) + 0.5) * scale - 0.5
    np.testing.assert_allclose(true_boxes[0], expected, rtol=1e-5)
    assert (true_labels.tolist(), len(none)) == ([1], 0)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("flipped", [False, True])
def test_slices_are_seen_as_in_the_whole_scan(tmp_path, slices, flipped):
    spec = replace(FLAT, size_zyx=(1, 16, 16), slices=slices)
    volume = scan(0)
    geometry = volume.geometry
    if flipped:  # from head to feet
        geometry = Geometry.from_axes(SHAPE, (0, 0, 0), [(0, 0, -2.5), (0, 1.5, 0), (1.5, 0, 0)])
    write_nifti(tmp_path / "a.nii.gz", volume.voxels, geometry)
    looked = [f"a.nii.gz,p,{z},,,,," for z in (0, 3, 4, 11, 19)]
    table(tmp_path, "slices.csv", "a.nii.gz,p,11,1,2,3,9,12", *looked)
    (case,) = discover(tmp_path, spec)
    stored = prepare(case, spec, {})

    class Echo:
        """Answers with the voxels that it is shown."""

        name, device = "torch", "cpu"

        def __call__(self, tiles):
            said = torch.zeros(len(tiles), 8732, 7)
            said[:, : tiles[0].numel(), 0] = tiles.flatten(1)
            return said

    model = Model(spec, Echo())
    whole, _ = model.see(stored.volume())
    assert torch.equal(see_slices(model, stored), whole[list(stored.slices)])
    (at,) = {int(row[0]) for row in stored.boxes}
    assert at == (8 if flipped else 11)


def test_the_cache_keeps_boxes_and_tells_other_boxes_apart(tmp_path, stored):
    cache = Cache(tmp_path / "cache", limit_bytes=1 << 30)
    first = cache.stored(stored.case, NODULES, {})
    assert first.folder is not None
    np.testing.assert_array_equal(first.boxes, stored.boxes)
    assert cache.stored(stored.case, NODULES, {}).folder == first.folder
    moved = replace(stored.case, boxes=(replace(stored.case.boxes[0], label=2),))
    other = cache.stored(moved, NODULES, {})
    assert other.folder != first.folder
    assert other.boxes[0, 6] == 2
    empty = cache.stored(replace(stored.case, boxes=()), NODULES, {})
    assert empty.boxes.shape == (0, 7)


def test_boxes_are_drawn_around_what_they_hold():
    panel = Panel(
        np.zeros((20, 20)), None, None, "", truth_boxes=np.array([[4.5, 5.5, 9.5, 12.5]]),
        found_boxes=np.array([[-3.0, -3.0, 3.2, 3.2]]),
    )  # fmt: skip
    picture = panel_image(panel)
    rows, columns = (picture == 255).all(2).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 13, 4, 10)
    assert (picture[6:13, 5:10] == 0).all(), "what is in the box can be seen"
    assert picture[4, 0].any()
    assert not picture[2, 2].any()


def test_a_sample_shows_the_slice_of_its_largest_box():
    image = torch.zeros(1, 1, *PATCH)
    image[0, 0, 4] = 0.75
    (panel,) = sample_panels(Batch(image, [Targets(TRUTH, torch.tensor([1]))], ("a",)))
    assert (panel.image == 0.75).all()
    assert panel.truth_boxes.tolist() == [[3.0, 4.0, 9.0, 11.0]]


def test_of_epochs_of_one_cpm_the_one_that_overlaps_more_is_best():
    recipe = SimpleNamespace(loop=SimpleNamespace(patience=0))
    progress = Progress()
    best = []
    for epoch, (cpm, iou) in enumerate([(0.0, 0.0), (1.0, 0.4), (1.0, 0.3), (1.0, 0.5)], start=1):
        row = {"epoch": epoch, "val_cpm": cpm, "val_iou": iou}
        progress.history.append(row)
        loop._judge(progress, recipe, row, ("val_cpm", 1))
        best.append(progress.best_epoch)
    assert best == [1, 2, 2, 4]
