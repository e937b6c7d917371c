"""resample_argmax: what it promises beyond agreement with the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.ops import resample_argmax
from fastmed.testing import (
    axis_matrix,
    fitted_matrix,
    interpolated_logits,
    oblique_matrix,
    resample_argmax_reference,
    smooth_logits,
)

IDENTITY = axis_matrix([1, 1, 1])

# logits per class along one row, step, origin, outside, expected labels
TABLE = {
    "identity": ([[1, 0, 0], [0, 1, 5]], 1, 0, None, [0, 1, 1]),
    "ties take the lowest class": ([[1, 1, 0], [1, 1, 1], [0, 1, 1]], 1, 0, None, [0, 0, 1]),
    "a tie between voxels": ([[1, 0, 0], [0, 1, 1]], 1, 0.5, None, [0, 1, 1]),
    "the stronger side reaches further": ([[3, 0, 0], [0, 1, 1]], 0.25, 0, None, [0, 0, 0]),
    "one class is sigmoid > 0.5": ([[-1, 0, 2]], 1, 0, None, [0, 0, 1]),
    "one class between voxels": ([[-1, 0, 2]], 1, 0.5, None, [0, 1, 1]),
    "edges repeat": ([[1, 0, 0], [0, 1, 1]], 1, -2, None, [0, 0, 0]),
    "half a voxel outside is inside": ([[0, 0, 0], [1, 1, 1]], 1, -0.5, 7, [1, 1, 1]),
    "further is outside": ([[0, 0, 0], [1, 1, 1]], 1, -0.75, 7, [7, 1, 1]),
    "beyond the far end": ([[0, 0, 0], [1, 1, 1]], 1, 1.75, 0, [1, 0, 0]),
}


@pytest.mark.parametrize("tilt", [0.0, 1.0], ids=["axis-aligned", "general"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("name", TABLE)
def test_table(name, dtype, tilt, device):
    logits, step, origin, outside, expected = TABLE[name]
    matrix = axis_matrix([1, 1, step], [0, 0, origin])
    matrix[0, 1] = tilt  # times y = 0: forces the general path, moves nothing
    grid = torch.tensor(logits, dtype=dtype, device=device)[:, None, None]
    labels = resample_argmax(grid, matrix.to(device), (1, 1, 3), outside=outside)
    assert labels.dtype == torch.uint8
    assert labels.flatten().tolist() == expected


@pytest.mark.parametrize(
    ("classes", "dtype"), [(1, torch.uint8), (255, torch.uint8), (256, torch.int16)]
)
def test_label_dtype_by_class_count(classes, dtype, device):
    logits = torch.zeros(classes, 2, 3, 4, device=device)
    logits[-1] = 1
    labels = resample_argmax(logits, IDENTITY.to(device), (2, 3, 4))
    assert labels.dtype == dtype
    assert labels.unique().tolist() == [max(classes - 1, 1)]


def assert_differs_only_at_ties(labels, logits, matrix, size):
    """Where labels differ from the reference, the two best values lie within 1e-5, relatively."""
    differs = labels != resample_argmax_reference(logits, matrix, size)
    values = interpolated_logits(logits, matrix, size)[:, differs]
    best = values.topk(2, 0).values
    chosen = values.gather(0, labels[differs].long()[None])[0]
    assert ((best[0] - chosen) <= 1e-5 * best[0].abs()).all()


@settings(max_examples=40, deadline=None)
@given(
    linear=st.lists(st.floats(-2, 2), min_size=9, max_size=9),
    origin=st.lists(st.floats(-5, 10), min_size=3, max_size=3),
    shape=st.tuples(st.integers(2, 5), *[st.integers(1, 9)] * 3),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 600)),
    diagonal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_matrix_agrees_up_to_ties(linear, origin, shape, size, diagonal, seed):
    rows = torch.tensor(linear, dtype=torch.float64).reshape(3, 3)
    rows = torch.diag(rows.diag()) if diagonal else rows
    matrix = torch.cat([rows, torch.tensor(origin, dtype=torch.float64)[:, None]], 1)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert_differs_only_at_ties(resample_argmax(logits, matrix, size), logits, matrix, size)


def test_shifting_all_classes_alike_changes_nothing():
    logits = smooth_logits((4, 8, 9, 10), dtype=torch.float64)
    matrix, size = oblique_matrix((8, 9, 10), (12, 13, 14)), (12, 13, 14)
    assert torch.equal(
        resample_argmax(logits, matrix, size), resample_argmax(logits + 8, matrix, size)
    )


def test_batches_equal_single_calls(device):
    logits = torch.stack(
        [smooth_logits((3, 6, 7, 8), seed=seed, device=device) for seed in range(2)]
    )
    matrices = torch.stack(
        [fitted_matrix((6, 7, 8), (9, 9, 9)), oblique_matrix((6, 7, 8), (9, 9, 9))]
    ).to(device)
    single = [
        resample_argmax(each, rows, (9, 9, 9)) for each, rows in zip(logits, matrices, strict=True)
    ]
    assert torch.equal(resample_argmax(logits, matrices, (9, 9, 9)), torch.stack(single))
    shared = resample_argmax(logits, matrices[0], (9, 9, 9))
    assert torch.equal(shared[0], single[0])
    assert resample_argmax(logits[:0], matrices[0], (9, 9, 9)).shape == (0, 9, 9, 9)


def test_views_are_read_in_their_own_order(device):
    logits = smooth_logits((3, 6, 7, 8), device=device)
    turned = logits.permute(0, 3, 1, 2)
    size = tuple(turned.shape[1:])
    assert torch.equal(
        resample_argmax(turned, IDENTITY.to(device), size), turned.argmax(0).to(torch.uint8)
    )


LOGITS = torch.zeros(2, 3, 4, 5)
BAD = [
    ("logits", TypeError, (LOGITS.long(), IDENTITY, (1, 1, 1)), {}),
    ("logits", ValueError, (LOGITS[0], IDENTITY, (1, 1, 1)), {}),
    ("logits", ValueError, (LOGITS[:0], IDENTITY, (1, 1, 1)), {}),
    ("matrix", ValueError, (LOGITS, IDENTITY[:2], (1, 1, 1)), {}),
    ("matrix", ValueError, (LOGITS, IDENTITY.expand(2, 3, 4), (1, 1, 1)), {}),
    ("matrix", ValueError, (LOGITS, IDENTITY * float("nan"), (1, 1, 1)), {}),
    ("size", ValueError, (LOGITS, IDENTITY, (1, 1, 0)), {}),
    ("outside", ValueError, (LOGITS, IDENTITY, (1, 1, 1)), {"outside": -1}),
    ("outside", ValueError, (LOGITS, IDENTITY, (1, 1, 1)), {"outside": 256}),
]


@pytest.mark.parametrize(("name", "error", "arguments", "keywords"), BAD)
def test_errors_name_the_argument(name, error, arguments, keywords):
    with pytest.raises(error, match=f"^{name}: "):
        resample_argmax(*arguments, **keywords)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_unreadable_matrices_and_logits_leave_memory_alone(value, device):
    matrix = torch.full((1, 3, 4), value, dtype=torch.float64, device=device)
    logits = torch.full((1, 2, 3, 4, 5), min(value, 1e30), device=device)
    for outside in (None, 1):
        assert torch.ops.fastmed.resample_argmax(logits, matrix, [4, 5, 6], outside).shape == (
            1,
            4,
            5,
            6,
        )
