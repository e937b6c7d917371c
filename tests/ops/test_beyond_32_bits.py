"""Tensors above 2**31 voxels, and boxes whose pairs would fit no memory: `make test-long`."""

import pytest
import torch

from fastmed import ops
from fastmed.testing import (
    axis_matrix,
    fitted_matrix,
    oblique_matrix,
    smooth_logits,
    stored_voxels,
    strewn_boxes,
)

pytestmark = pytest.mark.long

SHAPE = (1100, 1400, 1400)
CORNER = (4, 5, 6)
LAST = [length - count for length, count in zip(SHAPE, CORNER, strict=True)]
END = tuple(slice(start, None) for start in LAST)


@pytest.fixture(scope="module")
def marked():
    """uint8 zeros but for the last few voxels."""
    volume = torch.zeros(SHAPE, dtype=torch.uint8)
    assert volume.numel() > 2**31
    volume[END] = torch.arange(1, 121, dtype=torch.uint8).reshape(CORNER)
    return volume


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("slant", [0.0, 1e-3], ids=["straight", "slanting"])
def test_window_resample_reads_the_last_voxels(marked, slant, mode):
    matrix = axis_matrix([1, 1, 1], LAST)
    matrix[0, 2] = slant
    crop = marked[END].contiguous()
    local = axis_matrix([1, 1, 1])
    local[0, 2] = slant
    result = ops.window_resample(marked, matrix, CORNER, mode=mode)
    torch.testing.assert_close(
        result, ops.window_resample(crop, local, CORNER, mode=mode), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(
    ("matrix_of", "dtype"), [(oblique_matrix, torch.float16), (fitted_matrix, torch.float32)]
)
def test_window_resample_writes_the_last_voxels(matrix_of, dtype):
    volume = stored_voxels((20, 30, 40))
    matrix = matrix_of(volume.shape, SHAPE)
    result = ops.window_resample(volume, matrix, SHAPE, window=(-1000, 400), dtype=dtype)
    last = matrix.clone()
    last[:, 3] += matrix[:, :3] @ torch.tensor(LAST, dtype=torch.float64)
    expected = ops.window_resample(volume, last, CORNER, window=(-1000, 400), dtype=dtype)
    torch.testing.assert_close(result[END], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("slant", [0.0, 1e-5], ids=["straight", "slanting"])
def test_resample_argmax_writes_the_last_voxels(slant):
    logits = smooth_logits((3, 20, 30, 40))
    steps = [count / length for count, length in zip((20, 30, 40), SHAPE, strict=True)]
    matrix = axis_matrix(steps)
    matrix[0, 2] = slant
    labels = ops.resample_argmax(logits, matrix, SHAPE)
    last = matrix.clone()
    last[:, 3] += matrix[:, :3] @ torch.tensor(LAST, dtype=torch.float64)
    assert torch.equal(labels[END], ops.resample_argmax(logits, last, CORNER))


def test_resample_argmax_reads_the_last_logits():
    logits = torch.zeros([2, *SHAPE], dtype=torch.float16)
    logits[(slice(1, 2), *END)] = 1
    for slant in (0.0, 1e-3):
        matrix = axis_matrix([1, 1, 1], [start - 2 for start in LAST])
        matrix[0, 2] = slant
        labels = ops.resample_argmax(logits, matrix, (6, 7, 8))
        assert labels[3:, 3:, 3:].min() == 1
        assert labels[0].max() == 0


def test_overlap_counts_counts_all(marked):
    target = torch.zeros_like(marked)
    target[END] = 1
    counts = ops.overlap_counts(marked[None], target[None], 2)
    rest = marked.numel() - 120
    assert counts.tolist() == [[[rest, rest, rest], [1, 1, 120]]]


def test_softmax_overlap_sums_all():
    logits = torch.zeros([1, 2, *SHAPE], dtype=torch.bfloat16)
    target = torch.zeros([1, *SHAPE], dtype=torch.uint8)
    target[(slice(None), *END)] = 1
    voxels = target.numel()
    intersection, prediction, truth = ops.softmax_overlap(logits, target)
    torch.testing.assert_close(prediction, torch.full([1, 2], voxels / 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(intersection, torch.tensor([[(voxels - 120) / 2, 60.0]]))
    torch.testing.assert_close(truth, torch.tensor([[voxels - 120.0, 120.0]]))


def test_suppression_takes_a_million_boxes():
    boxes, scores = strewn_boxes(1_000_000, 3, 3000.0)
    kept = ops.nms(boxes, scores, 0.1)
    assert (scores[kept].diff() <= 0).all()
    some = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[:200]]
    overlap = ops.box_iou(boxes[some], boxes[kept])
    overlap[torch.arange(200), (kept == some[:, None]).nonzero()[:, 1]] = 0
    assert overlap.max() <= 0.1
    dropped = torch.ones(len(boxes), dtype=torch.bool)
    dropped[kept] = False
    some = dropped.nonzero()[:200, 0]
    stronger = scores[kept] >= scores[some][:, None]
    assert ((ops.box_iou(boxes[some], boxes[kept]) > 0.1) & stronger).any(1).all()
