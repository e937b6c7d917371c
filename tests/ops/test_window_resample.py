"""window_resample: what it promises beyond agreement with the reference."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmed.ops import resample, window_resample
from fastmed.testing import (
    axis_matrix,
    fitted_matrix,
    oblique_matrix,
    stored_voxels,
    window_resample_reference,
)

IDENTITY = axis_matrix([1, 1, 1])
NAN, INF = float("nan"), float("inf")


def _row(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).reshape(1, 1, -1)


# stored row, step, origin, keywords, expected row
TABLE = {
    "identity": ([1, 2, 3], 1, 0, {}, [1, 2, 3]),
    "flip": ([1, 2, 3], -1, 2, {}, [3, 2, 1]),
    "midpoints": ([0, 10, 30], 1, 0.5, {}, [5, 20, 30]),
    "edge repeats": ([1, 2, 3], 1, -1, {}, [1, 1, 2]),
    "fill joins the interpolation": ([10, 20, 30], 1, -0.5, {"fill": 0}, [5, 15, 25]),
    "fill far away": ([10, 20, 30], 1, 50, {"fill": -7}, [-7, -7, -7]),
    "fill is in HU": ([10, 20, 30], 1, 1, {"fill": -1000, "scale": 2, "shift": 5}, [45, 65, -1000]),
    "fill is windowed": ([10, 20, 30], 1, 1, {"fill": 15, "window": (10, 30)}, [0.5, 1, 0.25]),
    "fill with scale 0": ([10, 20, 30], 1, 1, {"fill": 9, "scale": 0, "shift": 4}, [4, 4, 9]),
    "rescale": ([1, 2, 3], 1, 0, {"scale": 2, "shift": -1}, [1, 3, 5]),
    "window": ([0, 5, 20], 1, 0, {"window": (0, 10)}, [0, 0.5, 1]),
    "nearest rounds half up": ([1, 2, 3], 1, 0.5, {"mode": "nearest"}, [2, 3, 3]),
    "nearest below half": ([1, 2, 3], 1, 0.4375, {"mode": "nearest"}, [1, 2, 3]),
    "nearest fill": ([1, 2, 3], 1, -0.5, {"mode": "nearest", "fill": 9}, [1, 2, 3]),
    "nearest fill beyond half": ([1, 2, 3], 1, -0.5625, {"mode": "nearest", "fill": 9}, [9, 1, 2]),
    "NaN stays": ([1, NAN, 3], 1, 0, {"window": (0, 4)}, [0.25, NAN, 0.75]),
    "NaN spreads to what it weighs in": ([1, NAN, 3], 1, -0.5, {}, [1, NAN, NAN]),
    "infinity is windowed": ([1, INF, -INF], 1, 0, {"window": (0, 4)}, [0.25, 1, 0]),
}


@pytest.mark.parametrize("slope", [0.0, 0.25], ids=["axis-aligned", "general"])
@pytest.mark.parametrize("name", TABLE)
def test_table(name, slope, device):
    stored, step, origin, keywords, expected = TABLE[name]
    volume = _row(stored).repeat(1, 3, 1).to(device)
    matrix = axis_matrix([1, 1, step], [0, 1, origin])
    matrix[1, 2] = slope  # from one row to another that is the same
    result = window_resample(volume, matrix.to(device), (1, 1, 3), **keywords)
    torch.testing.assert_close(result.cpu(), _row(expected), equal_nan=True, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("fill", [None, -5.0])
def test_slanting_rows_read_nothing_beyond_volumes_one_voxel_thick(fill, mode, dtype, device):
    matrix = oblique_matrix((5, 5, 5), (6, 7, 40), tilt=0.3, turn=0.4).to(device)
    for shape in ((1, 5, 5), (5, 1, 5), (5, 5, 1), (1, 1, 5), (1, 5, 1), (5, 1, 1), (1, 1, 1)):
        volume = stored_voxels(shape).clamp(0, 255).to(device, dtype)
        arguments = (volume, matrix, (6, 7, 40))
        expected = window_resample_reference(*arguments, fill=fill, mode=mode)
        result = window_resample(*arguments, fill=fill, mode=mode)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


DTYPES = [
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
RESOLUTION = {torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float32: 1e-4, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", RESOLUTION, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_dtypes(stored, dtype, mode, device):
    volume = stored_voxels((5, 9, 13), stored, device=device)
    size = (7, 8, 140)
    for matrix in (fitted_matrix(volume.shape, size), oblique_matrix(volume.shape, size)):
        keywords = {"scale": 1.0, "shift": -10.0, "window": (-500.0, 1500.0), "mode": mode}
        result = window_resample(volume, matrix.to(device), size, dtype=dtype, **keywords)
        expected = window_resample_reference(
            volume, matrix.to(device), size, dtype=torch.float64, **keywords
        )
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=RESOLUTION[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearest_in_the_volumes_own_dtype_copies_voxels(dtype, device):
    volume = stored_voxels((5, 9, 13), dtype)
    flip = axis_matrix([-1, 1, -1], [4, 0, 12])
    flipped = torch.from_numpy(volume.float().numpy()[::-1, :, ::-1].copy()).to(dtype)
    for matrix, expected in ((IDENTITY, volume), (flip, flipped)):
        result = window_resample(
            volume.to(device), matrix.to(device), volume.shape, mode="nearest", dtype=dtype
        )
        assert torch.equal(result.cpu(), expected)


def test_large_int32_labels_survive_nearest(device):
    volume = torch.tensor(
        [2**31 - 1, -(2**31), 2**24 + 1], dtype=torch.int32, device=device
    ).reshape(1, 1, 3)
    result = window_resample(
        volume, IDENTITY.to(device), (1, 1, 3), mode="nearest", dtype=torch.int32
    )
    assert torch.equal(result, volume)


def test_integer_output_rounds_and_saturates(device):
    volume = torch.tensor([0, 1, 3, 200, 255], dtype=torch.uint8, device=device).reshape(1, 1, 5)
    keywords = {"scale": 1.5, "shift": -1, "mode": "nearest", "dtype": torch.uint8}
    result = window_resample(volume, IDENTITY.to(device), (1, 1, 5), **keywords)
    assert result.flatten().tolist() == [0, 0, 4, 255, 255]


positions = st.floats(-3, 3, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    linear=st.lists(positions, min_size=9, max_size=9),
    origin=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 140)),
    diagonal=st.booleans(),
    fill=st.sampled_from([None, -1000.0, 50.0]),
)
def test_any_matrix_agrees_with_the_reference(linear, origin, shape, size, diagonal, fill):
    rows = torch.tensor(linear, dtype=torch.float64).reshape(3, 3)
    rows = torch.diag(rows.diag()) if diagonal else rows
    matrix = torch.cat([rows, torch.tensor(origin, dtype=torch.float64)[:, None]], 1)
    volume = stored_voxels(shape)
    keywords = {"window": (-1000.0, 3000.0), "fill": fill}
    result = window_resample(volume, matrix, size, **keywords)
    torch.testing.assert_close(
        result, window_resample_reference(volume, matrix, size, **keywords), rtol=0, atol=1e-4
    )


def test_general_matrices_nearly_axis_aligned_agree_with_aligned_ones():
    volume, size = stored_voxels((20, 30, 200)), (21, 33, 180)
    matrix = fitted_matrix(volume.shape, size)
    noisy = matrix.clone()
    noisy[0, 2] = noisy[2, 1] = 1e-12
    straight, slanting = (window_resample(volume, each, size) for each in (matrix, noisy))
    torch.testing.assert_close(straight, slanting, rtol=0, atol=1e-2)


def test_batches_lists_and_views_equal_single_calls(device):
    volumes = stored_voxels((3, 6, 7, 8), device=device)
    matrices = torch.stack(
        [fitted_matrix((6, 7, 8), (4, 5, 6)), IDENTITY, oblique_matrix((6, 7, 8), (4, 5, 6))]
    ).to(device)
    single = [
        window_resample(each, rows, (4, 5, 6)) for each, rows in zip(volumes, matrices, strict=True)
    ]
    assert torch.equal(window_resample(volumes, matrices, (4, 5, 6)), torch.stack(single))
    assert torch.equal(window_resample(list(volumes), matrices, (4, 5, 6)), torch.stack(single))
    other = stored_voxels((4, 9, 5), device=device)
    ragged = window_resample([volumes[0], other], IDENTITY.to(device), (4, 5, 6))
    assert torch.equal(ragged[1], window_resample(other, IDENTITY.to(device), (4, 5, 6)))
    crop = volumes[0, 1:5, 2:6, 1:7]
    assert torch.equal(window_resample(crop, IDENTITY.to(device), crop.shape), crop.float())
    turned = volumes[0].permute(2, 0, 1)
    assert torch.equal(window_resample(turned, IDENTITY.to(device), turned.shape), turned.float())


def test_one_matrix_in_a_stack_keeps_the_stack(device):
    volume = stored_voxels((2, 3, 4), device=device)
    assert window_resample(volume, IDENTITY[None].to(device), (2, 3, 4)).shape == (1, 2, 3, 4)
    assert window_resample(volume[None], IDENTITY.to(device), (2, 3, 4)).shape == (1, 2, 3, 4)


def test_no_grids_and_no_volumes_give_empty_results(device):
    volume = stored_voxels((2, 3, 4), device=device)
    assert window_resample(volume, torch.empty(0, 3, 4, device=device), (5, 6, 7)).shape == (
        0,
        5,
        6,
        7,
    )
    assert window_resample(volume[None][:0], IDENTITY.to(device), (5, 6, 7)).shape == (0, 5, 6, 7)


VOLUME = stored_voxels((2, 3, 4))
BAD = [
    ("volume", ValueError, (VOLUME[0], IDENTITY, (1, 1, 1)), {}),
    ("volume", ValueError, (VOLUME[:0], IDENTITY, (1, 1, 1)), {}),
    ("volume", ValueError, ([], IDENTITY, (1, 1, 1)), {}),
    ("volume", TypeError, (VOLUME.long(), IDENTITY, (1, 1, 1)), {}),
    ("volume", TypeError, ([VOLUME, VOLUME.float()], IDENTITY, (1, 1, 1)), {}),
    ("matrix", NotImplementedError, (VOLUME, IDENTITY.clone().requires_grad_(), (1, 1, 1)), {}),
    ("matrix", ValueError, (VOLUME, torch.eye(4), (1, 1, 1)), {}),
    ("matrix", ValueError, (VOLUME, IDENTITY * NAN, (1, 1, 1)), {}),
    ("matrix", ValueError, (VOLUME, IDENTITY + INF, (1, 1, 1)), {}),
    ("matrix", ValueError, (VOLUME.expand(3, 2, 3, 4), IDENTITY.expand(2, 3, 4), (1, 1, 1)), {}),
    ("matrix", TypeError, (VOLUME, IDENTITY.long(), (1, 1, 1)), {}),
    ("matrix", TypeError, (VOLUME, IDENTITY.bfloat16(), (1, 1, 1)), {}),
    ("volume", TypeError, (VOLUME.numpy(), IDENTITY, (1, 1, 1)), {}),
    ("volume", TypeError, ([VOLUME.numpy()], IDENTITY, (1, 1, 1)), {}),
    ("size", TypeError, (VOLUME, IDENTITY, 4), {}),
    ("scale", TypeError, (VOLUME, IDENTITY, (1, 1, 1)), {"scale": "x"}),
    ("window", TypeError, (VOLUME, IDENTITY, (1, 1, 1)), {"window": 5}),
    ("window", TypeError, (VOLUME, IDENTITY, (1, 1, 1)), {"window": (0, None)}),
    ("window", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"window": (0, 1e-40)}),
    ("fill", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"fill": 1e39}),
    ("size", ValueError, (VOLUME, IDENTITY, (1, 0, 1)), {}),
    ("size", ValueError, (VOLUME, IDENTITY, (1, 1)), {}),
    ("scale", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"scale": NAN}),
    ("scale", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"scale": torch.ones(2)}),
    ("shift", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"shift": torch.tensor([INF])}),
    ("fill", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"fill": INF}),
    ("window", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"window": (400, 400)}),
    ("window", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"window": (0, NAN)}),
    ("window", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"window": (0, 1, 2)}),
    ("mode", ValueError, (VOLUME, IDENTITY, (1, 1, 1)), {"mode": "cubic"}),
    ("dtype", TypeError, (VOLUME, IDENTITY, (1, 1, 1)), {"dtype": torch.int16}),
    ("dtype", TypeError, (VOLUME, IDENTITY, (1, 1, 1)), {"dtype": torch.uint8, "mode": "nearest"}),
]


@pytest.mark.parametrize(("name", "error", "arguments", "keywords"), BAD)
def test_errors_name_the_argument(name, error, arguments, keywords):
    with pytest.raises(error, match=f"^{name}: "):
        window_resample(*arguments, **keywords)


@pytest.mark.parametrize("below_autograd", [resample._BELOW_AUTOGRAD, nullcontext])
def test_the_short_way_past_autograd_changes_nothing(below_autograd, monkeypatch):
    monkeypatch.setattr(resample, "_BELOW_AUTOGRAD", below_autograd)
    volume = stored_voxels((2, 3, 4), torch.float32)
    result = window_resample(volume, IDENTITY, (2, 3, 4))
    assert torch.equal(result, volume)
    assert not result.requires_grad
    assert window_resample(volume.requires_grad_(), IDENTITY, (2, 3, 4)).requires_grad
    with torch.no_grad():
        assert not window_resample(volume, IDENTITY, (2, 3, 4)).requires_grad


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300])
def test_unreadable_matrices_leave_memory_alone(value, device):
    matrix = torch.full((1, 3, 4), value, dtype=torch.float64, device=device)
    one = torch.ones(1, dtype=torch.float64, device=device)
    for nearest in (False, True):
        for fill in (None, one):
            arguments = (
                [VOLUME.to(device)],
                matrix,
                [3, 4, 5],
                one,
                one,
                None,
                fill,
                nearest,
                torch.float32,
            )
            assert torch.ops.fastmed.window_resample(*arguments).shape == (1, 3, 4, 5)


def test_the_native_op_checks_what_could_break_memory():
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="matrix"):
        torch.ops.fastmed.window_resample(
            [VOLUME], IDENTITY[None].float(), [1, 1, 1], one, one, None, None, False, torch.float32
        )
    with pytest.raises(RuntimeError, match="scale"):
        torch.ops.fastmed.window_resample(
            [VOLUME],
            IDENTITY[None],
            [1, 1, 1],
            one.expand(3),
            one,
            None,
            None,
            False,
            torch.float32,
        )


# shape of the volume, size, step and origin along each axis
STRAIGHT = {
    "one voxel": ((1, 1, 1), (3, 2, 5), (0.3, -1, 1), (0, 0, 0)),
    "one voxel out": ((4, 5, 6), (1, 1, 1), (1, 1, 1), (1.5, 2.5, 3.5)),
    "one plane": ((1, 9, 13), (4, 7, 20), (1, 1.2, 0.6), (0, 0, 0.25)),
    "one row": ((5, 1, 40), (9, 4, 90), (0.5, 1, 0.4), (0, 0, 0)),
    "one column": ((5, 40, 1), (9, 90, 3), (0.5, 0.4, 1), (0, 0, 0)),
    "flipped": ((6, 7, 40), (24, 21, 150), (-0.22, -0.3, -0.26), (5, 6, 39)),
    "no step": ((6, 7, 40), (5, 6, 300), (0, 0, 0), (2.5, 3.25, 17.75)),
    "every plane": ((40, 7, 9), (40, 8, 10), (1, 1, 1), (0, 0, 0)),
    "planes left out": ((300, 4, 9), (40, 5, 8), (13, 1, 1), (-260, 0, 0)),
    "all outside": ((6, 7, 40), (5, 6, 300), (1, 1, 1), (-50, 90, -900)),
    "uneven last tile": ((5, 30, 40), (3, 51, 700), (1.5, 0.6, 0.057), (0, 0, 0)),
    "rows longer than a tile": ((3, 4, 60), (3, 2, 25_000), (0.7, 2.5, 0.0024), (0, 0, 0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("stored", [torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_grids_of_integers_at_any_number_of_threads(
    name, stored, dtype, one_thread_then_two
):
    shape, size, steps, origin = STRAIGHT[name]
    matrix, volume = axis_matrix(steps, origin), stored_voxels(shape, stored)
    hounsfield = window_resample_reference(volume, matrix, size, shift=-10.0, dtype=torch.float64)
    windowed = ((hounsfield + 500) / 2000).clamp(0, 1)
    for window, expected in ((None, hounsfield), ((-500.0, 1500.0), windowed)):
        keywords = {"shift": -10.0, "window": window, "dtype": dtype}
        one, *others = one_thread_then_two(
            lambda keywords=keywords: window_resample(volume, matrix, size, **keywords),
            counts=(1, 2, 5),
        )
        atol = 1e-4 if window else 0.1
        torch.testing.assert_close(one.double(), expected, rtol=0, atol=atol)
        assert all(torch.equal(one, other) for other in others)


# 17 MB, of which the caches would keep 16; rows of 3 voxels share the lines that are written whole.
@pytest.mark.parametrize("width", [373, 3])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_written_past_the_caches_equal_small_ones_for_any_threads(
    dtype, flipped, width, one_thread_then_two
):
    depth = 30 if dtype == torch.float32 else 15
    size, volume = (depth, 141_800 // width, width), stored_voxels((9, 40, 50))
    matrix = fitted_matrix(volume.shape, size)
    if flipped:
        matrix[:, :3] *= -1
        matrix[:, 3] = torch.tensor(volume.shape) - 1 - matrix[:, 3]
    keywords = {"window": (-500.0, 1500.0), "dtype": dtype}
    large, shared = one_thread_then_two(lambda: window_resample(volume, matrix, size, **keywords))
    small = window_resample(volume, matrix, (depth - 1, *size[1:]), **keywords)
    assert large.nbytes >= 16 << 20 > small.nbytes
    assert torch.equal(large[:-1], small)
    assert torch.equal(large, shared)
    expected = window_resample_reference(volume, matrix, (3, *size[1:]), **keywords)
    torch.testing.assert_close(large[:3], expected, rtol=0, atol=1e-4)
