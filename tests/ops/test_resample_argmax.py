"""resample_argmax: what it promises beyond agreement with the reference."""

import os
import subprocess
import sys

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
    """Where labels differ from the reference, the two best lie within 1e-5 of the largest logit."""
    differs = labels != resample_argmax_reference(logits, matrix, size)
    values = interpolated_logits(logits, matrix, size)[:, differs]
    if len(values) == 1:  # competes with 0
        values = torch.cat([torch.zeros_like(values), values])
    best = values.topk(2, 0).values
    chosen = values.gather(0, labels[differs].long()[None])[0]
    assert ((best[0] - chosen) <= 1e-5 * logits.abs().max()).all()


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


@st.composite
def upsampled_logits(draw):
    """Logits of one of several kinds, and a straight grid 1 to 4 times as fine, flips included."""
    shape = draw(st.tuples(st.integers(1, 9), *[st.integers(1, 7)] * 2, st.integers(1, 40)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["smooth", "noisy", "constant", "few values", "far from 0"]))
    if kind == "smooth":
        logits = smooth_logits(shape, seed=draw(st.integers(0, 1000)))
    elif kind == "constant":
        logits = torch.randn(shape[0], 1, 1, 1, generator=generator).expand(shape).contiguous()
    elif kind == "few values":
        logits = torch.randint(-1, 2, shape, generator=generator).float()
    else:
        logits = torch.randn(shape, generator=generator) + (100 if kind == "far from 0" else 0)
    factors = draw(st.tuples(*[st.floats(1, 4)] * 3))
    size = [max(1, int(length * factor)) for length, factor in zip(shape[1:], factors, strict=True)]
    matrix = fitted_matrix(shape[1:], size)
    for axis in range(3):
        if draw(st.booleans()):
            matrix[axis, 3] += matrix[axis, axis] * (size[axis] - 1)
            matrix[axis, axis] *= -1
    return logits, matrix, size


@settings(max_examples=60, deadline=None)
@given(case=upsampled_logits())
def test_finer_grids_agree_up_to_ties(case):
    logits, matrix, size = case
    assert_differs_only_at_ties(resample_argmax(logits, matrix, size), logits, matrix, size)


# logits per class at the two ends of one cell, expected labels of 5 voxels from end to end
INSIDE_A_CELL = {
    "a class that wins at no corner": ([[9, 0], [0, 9], [5, 5]], [0, 0, 2, 1, 1]),
    "a class that ties at a corner": ([[5, 0], [5, 4], [0, 9]], [0, 1, 1, 2, 2]),
    "a tie all along takes the lowest": ([[0, 9], [5, 5], [5, 5], [9, 0]], [3, 3, 1, 0, 0]),
    "a class that equals the two at their crossing": ([[8, 0], [0, 8], [4, 4]], [0, 0, 0, 1, 1]),
    "dominated classes": ([[-9, -9], [4, 0], [1, 1], [0, 4], [-1, 1]], [1, 1, 1, 3, 3]),
    "all equal": ([[2, 2], [2, 2]], [0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("axis", [0, 1, 2], ids="zyx")
@pytest.mark.parametrize("tilt", [0.0, 1.0], ids=["straight", "general"])
@pytest.mark.parametrize("name", INSIDE_A_CELL)
def test_inside_a_cell(name, tilt, axis, device):
    logits, expected = INSIDE_A_CELL[name]
    size, steps = [1, 1, 1], [1.0, 1.0, 1.0]
    size[axis], steps[axis] = 5, 0.25
    matrix = axis_matrix(steps)
    row, column = (other for other in range(3) if other != axis)
    matrix[row, column] = tilt  # times index 0: moves nothing
    grid = torch.tensor(logits, dtype=torch.float32, device=device)[:, None, None].movedim(
        3, axis + 1
    )
    assert resample_argmax(grid, matrix.to(device), size).flatten().tolist() == expected


def test_more_contenders_than_a_block_or_a_cache_keeps():
    logits = torch.randn(300, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for matrix in (fitted_matrix((3, 4, 5), (9, 12, 15)), oblique_matrix((3, 4, 5), (9, 12, 15))):
        labels = resample_argmax(logits, matrix, (9, 12, 15))
        assert_differs_only_at_ties(labels, logits, matrix, (9, 12, 15))


MEMORY = """
import sys, torch
from fastmed.ops import resample_argmax
from fastmed.testing import {grid}, smooth_logits

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

torch.set_num_threads(2)
shape, size = (96, 96, 96), (192, 192, 192)
logits, matrix = smooth_logits((6, *shape)), {grid}(shape, size)
resample_argmax(logits[:, :8, :8, :8], matrix, (16, 16, 16))
open("/proc/self/clear_refs", "w").write("5")
before = peak()
labels = resample_argmax(logits, matrix, size)
print((peak() - before) * 1024 - labels.numel())
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc")
@pytest.mark.parametrize("grid", ["fitted_matrix", "oblique_matrix"])
def test_memory_beside_the_labels_is_a_byte_per_voxel_and_a_few_rows(grid):
    script = [sys.executable, "-c", MEMORY.format(grid=grid)]
    extra = int(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    # A map of the model's grid, 1 MB of rows and contenders per thread, 1 MB for the process.
    assert extra <= 96**3 + 2 * 2**20 + 2**20


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


def test_the_least_slant_counts_outside(device):
    matrix = axis_matrix([1, 1, 1], [0, 0, -0.5])
    matrix[2, 0] = -1e-9
    logits = torch.zeros(2, 5, 1, 3, device=device)
    labels = resample_argmax(logits, matrix.to(device), (5, 1, 3), outside=7)
    assert labels[:, 0, 0].tolist() == [0, 7, 7, 7, 7]


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
