"""The gradient of window_resample with respect to the volume."""

import pytest
import torch

from fastmed.ops import window_resample
from fastmed.testing import axis_matrix, fitted_matrix, oblique_matrix, window_resample_reference

SHAPE, SIZE = (4, 5, 6), (5, 4, 7)
MATRICES = {
    "straight": fitted_matrix(SHAPE, SIZE),
    "flipped": axis_matrix([-0.6, 1.3, -1.1], [3.0, -2.0, 5.5]),
    "oblique": oblique_matrix(SHAPE, SIZE),
    "one point": torch.tensor([[0, 0, 0, 1.25], [0, 0, 0, 2.5], [0, 0, 0, 3.0]]).double(),
}


def _volume(dtype=torch.float64, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("fill", [None, 0.5])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("name", MATRICES)
def test_gradcheck(name, mode, fill, device):
    matrix = MATRICES[name].to(device)
    keywords = {"scale": 1.5, "shift": 0.1, "fill": fill, "mode": mode, "dtype": torch.float64}
    volume = _volume().to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda each: window_resample(each, matrix, SIZE, **keywords), volume
    )


def test_gradcheck_through_a_window(device):
    volume = _volume().to(device).requires_grad_()
    matrix = MATRICES["oblique"].to(device)
    keywords = {"window": (-0.4, 0.6), "dtype": torch.float64}
    assert torch.autograd.gradcheck(
        lambda each: window_resample(each, matrix, SIZE, **keywords), volume
    )


DTYPES = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MATRICES)
def test_agrees_with_the_gradient_of_the_reference(name, dtype, device):
    matrix = MATRICES[name].to(device)
    keywords = {"window": (-2.0, 2.0), "fill": -1.0}
    gradients = []
    for op in (window_resample, window_resample_reference):
        volume = _volume(dtype).to(device).requires_grad_()
        weights = torch.arange(140.0, device=device).reshape(SIZE) / 140
        (op(volume, matrix, SIZE, **keywords) * weights).sum().backward()
        assert volume.grad.dtype == dtype
        gradients.append(volume.grad.double())
    scale = gradients[1].abs().max()
    torch.testing.assert_close(*gradients, rtol=0, atol=DTYPES[dtype] * float(scale))


def test_several_grids_from_one_volume_add_up(device):
    matrices = torch.stack([MATRICES["straight"], MATRICES["oblique"]]).to(device)
    scale = torch.tensor([1.0, 3.0], device=device)
    together, apart = (_volume().to(device).requires_grad_() for _ in range(2))
    window_resample(together, matrices, SIZE, scale=scale).sum().backward()
    sum(
        window_resample(apart, each, SIZE, scale=gain).sum()
        for each, gain in zip(matrices, scale, strict=True)
    ).backward()
    torch.testing.assert_close(together.grad, apart.grad)


def test_each_volume_of_a_list_gets_its_own(device):
    first, second = _volume().to(device), _volume(shape=(3, 7, 2), seed=1).to(device)
    matrix = MATRICES["straight"].to(device)
    expected = []
    for volume in (first, second):
        single = volume.clone().requires_grad_()
        window_resample(single, matrix, SIZE, window=(-1.0, 1.0)).sum().backward()
        expected.append(single.grad)
    first.requires_grad_()
    second.requires_grad_()
    window_resample([first, second], matrix, SIZE, window=(-1.0, 1.0)).sum().backward()
    assert torch.equal(first.grad, expected[0])
    assert torch.equal(second.grad, expected[1])


def test_is_the_same_for_any_number_of_threads(one_thread_then_two):
    def gradient():
        volume = _volume(torch.float32, (20, 30, 40)).requires_grad_()
        matrix = oblique_matrix((20, 30, 40), (25, 26, 27))
        window_resample(volume, matrix, (25, 26, 27), window=(-1.0, 2.0)).square().sum().backward()
        return volume.grad

    one, two = one_thread_then_two(gradient)
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", MATRICES)
def test_gradients_that_are_not_finite_reach_the_volume(name, device):
    volume = _volume(torch.float32).to(device).requires_grad_()
    result = window_resample(volume, MATRICES[name].to(device), SIZE)
    weights = torch.ones(SIZE, device=device)
    weights[2, 2, 3] = float("nan")
    (result * weights).sum().backward()
    finite = volume.grad.isfinite()
    assert 1 <= int((~finite).sum()) <= 8


def test_compiles_with_its_backward():
    matrix = MATRICES["oblique"]

    def loss(volume):
        return window_resample(volume, matrix, SIZE, window=(-1.0, 1.0)).square().sum()

    eager, traced = _volume(torch.float32).requires_grad_(), _volume(torch.float32).requires_grad_()
    loss(eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(traced).backward()
    assert torch.equal(eager.grad, traced.grad)


def test_a_second_derivative_is_refused():
    volume = _volume().requires_grad_()
    result = window_resample(volume, MATRICES["oblique"], SIZE, dtype=torch.float64)
    gradient = torch.autograd.grad(result.square().sum(), volume, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="window_resample: has no second derivative"):
        gradient.sum().backward()
