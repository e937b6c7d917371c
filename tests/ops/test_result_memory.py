"""Memory of freed results on the CPU is handed to later ones, and never to two at once."""

import ctypes
import gc
import io
import os
import sys
import threading

import pytest
import torch

from fastmed import ops

MB = 2**20
IDENTITY = torch.eye(3, 4)
HAS_BLOCKS = sys.platform == "linux" and hasattr(ctypes.CDLL(torch._C.__file__), "torch_from_blob")

pytestmark = pytest.mark.skipif(not HAS_BLOCKS, reason="results are torch's own here")
counts_memory = pytest.mark.skipif(
    "FASTMED_SANITIZED" in os.environ, reason="a sanitizer keeps freed memory of its own"
)


@pytest.fixture(autouse=True)
def limit():
    before = ops.keep_result_memory(0)
    ops.keep_result_memory(256 * MB)
    yield
    ops.keep_result_memory(before)


def result(value=0, mb=4):
    """A result of window_resample full of one value."""
    volume = torch.full((1, 1, 1), value, dtype=torch.int16)
    return ops.window_resample(volume, IDENTITY, (mb, 512, 512))


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / MB


def test_a_freed_result_leaves_its_memory_to_the_next():
    first = result()
    place = first.data_ptr()
    del first
    assert result().data_ptr() == place


def test_every_op_with_large_results_takes_from_the_same_memory():
    def softmax_gradient():
        logits = torch.zeros(1, 2, 128, 64, 64, requires_grad=True)
        target = torch.zeros(1, 128, 64, 64, dtype=torch.uint8)
        ops.softmax_overlap(logits, target)[0].sum().backward()
        return logits.grad

    def volume_gradient():
        volume = torch.zeros(4, 512, 512, requires_grad=True)
        ops.window_resample(volume, IDENTITY, (4, 512, 512)).sum().backward()
        return volume.grad

    calls = [
        result,
        lambda: ops.box_iou(torch.rand(1024, 6), torch.rand(1024, 6)),
        lambda: ops.box_giou(torch.rand(1024, 4), torch.rand(1024, 4)),
        lambda: ops.resample_argmax(torch.zeros(2, 2, 2, 2), IDENTITY, (16, 512, 512)),
        softmax_gradient,
        volume_gradient,
    ]
    places = []
    for call in calls:
        ops.keep_result_memory(0)
        ops.keep_result_memory(256 * MB)
        made = [result() for _ in range(3)]
        free = {each.data_ptr() for each in made}
        del made
        places.append(call().data_ptr() in free)
    assert places == [True] * len(calls)


def test_memory_in_use_is_left_alone():
    view, array = result(1)[0, :2], result(2).numpy()
    alias = result(3)
    kept = alias.untyped_storage()
    del alias
    gc.collect()
    others = [result(7) for _ in range(4)]
    assert (view == 1).all()
    assert (array == 2).all()
    assert (torch.empty(0).set_(kept, 0, (MB,)) == 3).all()
    assert all((each == 7).all() for each in others)


def test_a_result_takes_a_block_of_up_to_twice_its_size():
    def takes(kept_mb, wanted_mb):
        ops.keep_result_memory(0)
        ops.keep_result_memory(256 * MB)
        kept = result(mb=kept_mb)
        place = kept.data_ptr()
        del kept
        return result(mb=wanted_mb).data_ptr() == place

    assert takes(8, 8)
    assert takes(8, 4)
    assert not takes(8, 3)
    assert not takes(4, 8)


@counts_memory
def test_nothing_is_kept_above_the_limit_and_the_newest_is_kept():
    ops.keep_result_memory(0)
    before = resident_mb()
    ops.keep_result_memory(100 * MB)
    results = [result(mb=mb) for mb in (60, 50, 40)]
    last = results[2].data_ptr()
    assert resident_mb() - before > 140
    while results:
        results.pop(0)
    assert 80 < resident_mb() - before < 120  # 50 + 40
    again = result(mb=40)
    assert again.data_ptr() == last
    del again
    too_large = result(mb=120)
    del too_large
    assert 80 < resident_mb() - before < 120
    assert ops.keep_result_memory(0) == 100 * MB
    assert resident_mb() - before < 30


@counts_memory
def test_many_blocks_are_no_more_than_the_limit():
    ops.keep_result_memory(0)
    before = resident_mb()
    ops.keep_result_memory(32 * MB)
    results = [result(mb=1) for _ in range(200)]
    assert resident_mb() - before > 180
    results.clear()
    assert 12 < resident_mb() - before < 60
    result(mb=20)
    assert 28 < resident_mb() - before < 60


def test_with_a_limit_of_0_or_below_1_mb_a_result_is_torchs_own():
    ops.keep_result_memory(0)
    assert result().untyped_storage().resizable()
    ops.keep_result_memory(256 * MB)
    volume = torch.zeros(1, 1, 1)
    assert ops.window_resample(volume, IDENTITY, (1, 512, 511)).untyped_storage().resizable()
    wrapped = result()
    assert not wrapped.untyped_storage().resizable()
    with pytest.raises(RuntimeError, match="not resizable"):
        wrapped.resize_(8, 512, 512)


def test_threads_never_share_a_block():
    wrong, stop = [], threading.Event()

    def work(number):
        held = []
        for turn in range(60):
            value = number * 1000 + turn
            held.append((value, result(value, mb=1 + (number + turn) % 3)))
            if len(held) > 3:
                value, tensor = held.pop(0)
                if not (tensor == value).all():
                    wrong.append(value)

    def change_the_limit():
        while not stop.wait(0.001):
            ops.keep_result_memory(4 * MB)
            ops.keep_result_memory(64 * MB)

    changing = threading.Thread(target=change_the_limit)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in [changing, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    changing.join()
    assert wrong == []


def test_a_result_is_an_ordinary_tensor():
    made = result(5)
    assert made.is_contiguous()
    assert not made.requires_grad
    assert made.device.type == "cpu"
    assert torch.equal(torch.load(saved(made), weights_only=True), made)
    made.add_(1)
    assert (made == 6).all()
    shared = result(5).share_memory_()
    assert shared.is_shared()
    assert (shared == 5).all()
    with torch.inference_mode():
        assert result(5).is_inference()


def saved(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return file


class Resampled(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return result(index, mb=2)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_workers_of_a_data_loader_hand_them_over():
    result()  # so that the workers are forked with a block kept
    loader = torch.utils.data.DataLoader(Resampled(), batch_size=2, num_workers=2)
    values = [[each.unique().tolist() for each in batch] for batch in loader]
    assert values == [[[0.0], [1.0]], [[2.0], [3.0]], [[4.0], [5.0]], [[6.0], [7.0]]]


def test_what_is_no_limit_is_named():
    with pytest.raises(ValueError, match="limit_bytes: -1; expected 0 or more"):
        ops.keep_result_memory(-1)
    with pytest.raises(TypeError, match="limit_bytes: '1 GB'; expected an integer"):
        ops.keep_result_memory("1 GB")
