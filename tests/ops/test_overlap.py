"""overlap_counts and the scores made of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.ops import dice_score, iou_score, overlap_counts
from fastmed.testing import label_map, overlap_counts_reference

# prediction, target, classes, ignore_index, expected [intersection, prediction, target] per class
TABLE = {
    "two classes": ([0, 1, 1, 0], [0, 1, 0, 0], 2, None, [[2, 2, 3], [1, 2, 1]]),
    "labels beyond count for no class": (
        [0, 9, 1, 9],
        [9, 0, 1, 9],
        2,
        None,
        [[0, 1, 1], [1, 1, 1]],
    ),
    "ignored target": ([0, 1, 1, 0], [0, 1, 5, 5], 2, 5, [[1, 1, 1], [1, 1, 1]]),
    "ignored class": ([0, 1, 1, 0], [0, 1, 1, 1], 2, 1, [[1, 1, 1], [0, 0, 0]]),
    "ignored label in the prediction alone": ([5, 1], [0, 1], 2, 5, [[0, 0, 1], [1, 1, 1]]),
    "absent class": ([0, 0], [0, 0], 3, None, [[2, 2, 2], [0, 0, 0], [0, 0, 0]]),
}
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]


@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prediction_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_table(name, prediction_dtype, target_dtype, device):
    prediction, target, classes, ignore_index, expected = TABLE[name]
    prediction = torch.tensor([prediction], dtype=prediction_dtype, device=device)
    target = torch.tensor([target], dtype=target_dtype, device=device)
    counts = overlap_counts(prediction, target, classes, ignore_index=ignore_index)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [expected]


def test_bool_masks(device):
    prediction = torch.tensor([[True, True, False]], device=device)
    target = torch.tensor([[True, False, False]], device=device)
    assert overlap_counts(prediction, target, 2).tolist() == [[[1, 1, 2], [1, 2, 1]]]


def test_negative_labels_count_for_no_class_and_may_be_ignored(device):
    prediction = torch.tensor([[-1, 0, 0]], device=device)
    target = torch.tensor([[0, -1, 0]], device=device)
    assert overlap_counts(prediction, target, 1).tolist() == [[[1, 2, 2]]]
    assert overlap_counts(prediction, target, 1, ignore_index=-1).tolist() == [[[1, 1, 2]]]


@settings(max_examples=25, deadline=None)
@given(
    items=st.integers(1, 3),
    voxels=st.integers(1, 200_000),
    labels=st.integers(1, 256),
    classes=st.integers(1, 300),
    ignore_index=st.sampled_from([None, 0, 3, 255]),
    seed=st.integers(0, 100),
)
def test_byte_maps_of_any_length_agree_with_the_reference(
    items, voxels, labels, classes, ignore_index, seed
):
    classes = min(classes, labels + 1)
    prediction = label_map((items, voxels), labels, seed=seed)
    target = label_map((items, voxels), labels, seed=seed + 1)
    counts = overlap_counts(prediction, target, classes, ignore_index=ignore_index)
    assert torch.equal(
        counts, overlap_counts_reference(prediction, target, classes, ignore_index=ignore_index)
    )


@settings(max_examples=40, deadline=None)
@given(
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70_000)),
    noise=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    labels=st.integers(1, 400),
    classes=st.sampled_from([1, 2, 3, 14, 118, 253, 254, 255, 256, 257, 400]),
    ignore_index=st.sampled_from([None, -1, 0, 3, 254, 255, 256, 300, -(2**40)]),
    seed=st.integers(0, 100),
)
def test_maps_of_any_dtype_and_noise_agree_with_the_reference(
    dtypes, shape, noise, labels, classes, ignore_index, seed
):
    generator = torch.Generator().manual_seed(seed)

    def labelled(dtype):
        regions = torch.randint(-2, labels, shape, generator=generator).sort(1).values
        strewn = torch.randint(-2, labels, shape, generator=generator)
        chosen = torch.rand(shape, generator=generator) < noise
        return torch.where(chosen, strewn, regions).to(dtype)

    prediction, target = map(labelled, dtypes)
    counts = overlap_counts(prediction, target, classes, ignore_index=ignore_index)
    expected = overlap_counts_reference(prediction, target, classes, ignore_index=ignore_index)
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("classes", [2, 14, 118])
def test_threads_change_no_count(classes, noise, one_thread_then_two):
    generator = torch.Generator().manual_seed(classes)
    target = label_map((3, 200_001), classes)
    strewn = torch.randint(0, classes, target.shape, generator=generator).to(torch.uint8)
    prediction = torch.where(torch.rand(target.shape, generator=generator) < noise, strewn, target)
    one, two = one_thread_then_two(lambda: overlap_counts(prediction, target, classes))
    assert torch.equal(one, two)
    assert torch.equal(one, overlap_counts_reference(prediction, target, classes))


def test_maps_at_any_offset_in_memory(device):
    prediction, target = (label_map((5000,), 5, device=device, seed=seed) for seed in (1, 2))
    for first in range(18):
        views = prediction[None, first:], target[None, first:]
        assert torch.equal(overlap_counts(*views, 5), overlap_counts_reference(*views, 5))


def test_empty_maps(device):
    empty = torch.empty(2, 0, 5, dtype=torch.uint8, device=device)
    assert overlap_counts(empty, empty, 3).tolist() == [[[0] * 3] * 3] * 2
    assert overlap_counts(empty[:0], empty[:0], 3).shape == (0, 3, 3)


def test_views_count_as_their_copies(device):
    labels = label_map((2, 40, 50, 60), 4, device=device)
    turned, other = labels.transpose(1, 3), labels.flip(2).transpose(1, 3)
    assert torch.equal(
        overlap_counts(turned, other, 4), overlap_counts(turned.contiguous(), other.contiguous(), 4)
    )


def test_scores():
    counts = torch.tensor([[[2, 3, 4], [0, 0, 0], [0, 5, 0]]])
    torch.testing.assert_close(
        dice_score(counts),
        torch.tensor([[4 / 7, float("nan"), 0]], dtype=torch.float64),
        equal_nan=True,
    )
    torch.testing.assert_close(
        iou_score(counts),
        torch.tensor([[2 / 5, float("nan"), 0]], dtype=torch.float64),
        equal_nan=True,
    )


LABELS = torch.zeros(2, 3, dtype=torch.uint8)
BAD = [
    ("prediction", TypeError, (LABELS.float(), LABELS, 2)),
    ("target", TypeError, (LABELS, LABELS.float(), 2)),
    ("target", ValueError, (LABELS, LABELS[:1], 2)),
    ("prediction", ValueError, (LABELS[0, 0], LABELS[0, 0], 2)),
    ("num_classes", ValueError, (LABELS, LABELS, 0)),
]


@pytest.mark.parametrize(("name", "error", "arguments"), BAD)
def test_errors_name_the_argument(name, error, arguments):
    with pytest.raises(error, match=f"^{name}: "):
        overlap_counts(*arguments)
