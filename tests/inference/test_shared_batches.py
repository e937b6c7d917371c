"""Tiles of several scans share batches; what is said of a tile does not depend on the others."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

import fastmed
from fastmed.errors import SeriesError
from fastmed.inference.shared_batches import SharedBatches


class Counting:
    """An engine that says of each tile its sum; it keeps the sizes of its batches."""

    name, device, precision = "counting", "cpu", "fp32"

    def __init__(self):
        self.sizes, self.say = [], print
        self.out = torch.zeros(4, 1)

    def __call__(self, tiles):
        self.sizes.append(len(tiles))
        self.out.copy_(tiles.flatten(1).sum(1, keepdim=True))
        return self.out


def tiles(first, count):
    return torch.arange(first, first + count).float()[:, None, None, None, None]


def test_a_scan_alone_gets_full_batches_the_last_one_filled_up():
    engine = Counting()
    with SharedBatches(engine, 4) as shared, shared.scan():
        said = [shared(tiles(0, 4)).clone(), shared(tiles(4, 2))]
    assert torch.cat(said)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert engine.sizes == [4, 4]


def test_two_scans_share_a_batch():
    engine = Counting()
    with SharedBatches(engine, 4) as shared, ThreadPoolExecutor(2) as pool:
        both = threading.Barrier(2)

        def scan(first, count):
            with shared.scan():
                both.wait()
                return shared(tiles(first, count))[:, 0].tolist()

        one, two = pool.submit(scan, 10, 1), pool.submit(scan, 20, 3)
        assert (one.result(10), two.result(10)) == ([10], [20, 21, 22])
    assert engine.sizes == [4]


def test_more_tiles_than_a_batch_and_another_shape_go_through(monkeypatch):
    engine = Counting()
    with SharedBatches(engine, 4) as shared, shared.scan():
        assert shared(tiles(0, 6))[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert shared(torch.ones(1, 1, 2, 2, 2))[:, 0].tolist() == [8]


def test_an_error_of_the_engine_reaches_who_asked():
    def fail(tiles):
        raise RuntimeError("CUDA out of memory")

    engine = SimpleNamespace(name="x", device="cpu", precision="fp32", say=print, __call__=fail)
    shared = SharedBatches(engine, 2)
    shared._engine = fail
    with shared, shared.scan(), pytest.raises(RuntimeError, match="out of memory"):
        shared(tiles(0, 1))


def test_a_scan_that_ends_lets_the_others_go_on():
    engine = Counting()
    with SharedBatches(engine, 4) as shared, ThreadPoolExecutor(1) as pool:
        with shared.scan():
            other = pool.submit(lambda: _one(shared))
            assert not _is_done_soon(other)
        assert other.result(10) == [7]


def _one(shared):
    with shared.scan():
        return shared(tiles(7, 1))[:, 0].tolist()


def _is_done_soon(future):
    threading.Event().wait(0.2)
    return future.done()


def test_many_threads_and_sizes_all_get_their_own_answers():
    engine = Counting()
    with SharedBatches(engine, 4) as shared, ThreadPoolExecutor(3) as pool:

        def scan(number):
            sizes = torch.randint(1, 5, (20,), generator=torch.Generator().manual_seed(number))
            with shared.scan():
                for k, size in enumerate(sizes.tolist()):
                    first = 1000 * number + 10 * k
                    said = shared(tiles(first, size))[:, 0].tolist()
                    assert said == list(range(first, first + size))
            return True

        assert all(pool.map(scan, range(12), timeout=60))
    assert set(engine.sizes) == {4}


class Sized(Counting):
    """As many answers as tiles, whatever their number."""

    def __call__(self, tiles):
        self.out = torch.zeros(len(tiles), 1)
        return super().__call__(tiles)


def test_two_scans_that_fail_together_halve_the_batch_once():
    with SharedBatches(Counting(), 4) as shared:
        assert [shared.halve(4), shared.halve(4)] == [2, 2]
        assert [shared.halve(2), shared.halve(4), shared.halve(2)] == [1, 1, 1]
        assert [shared.halve(1), shared.batch] == [1, 1]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_is_of_one_size_though_it_is_halved_while_it_is_made(count):
    engine = Sized()
    with SharedBatches(engine, 4) as shared, shared.scan():
        chosen = shared._next_parts

        def then_halved(*batch):
            parts = chosen(*batch)
            shared.halve(4)
            return parts

        shared._next_parts = then_halved
        assert shared(tiles(5, count))[:, 0].tolist() == list(range(5, 5 + count))
        assert engine.sizes == [4]
        assert shared(tiles(7, 3))[:, 0].tolist() == [7, 8, 9]
    assert engine.sizes == [4, 2, 2]


@pytest.mark.parametrize("answers", [3, 5])
def test_an_engine_that_answers_for_another_number_of_tiles_is_refused(answers):
    with SharedBatches(Counting(), 4) as shared, shared.scan():
        shared._engine = lambda tiles: torch.zeros(answers, 1)
        with pytest.raises(SeriesError, match=f"answered for {answers} tiles of 4"):
            shared(tiles(0, 2))


def test_an_error_outside_the_engine_reaches_all_who_wait_and_the_next_are_served():
    with SharedBatches(Counting(), 4) as shared, ThreadPoolExecutor(2) as pool:
        chosen = shared._next_parts

        def fail(batch):
            shared._next_parts = chosen
            raise MemoryError("no room for the list")

        with shared.scan(), shared.scan():
            shared._next_parts = fail
            asked = [pool.submit(shared, tiles(first, 1)) for first in (0, 1)]
            for future in asked:
                with pytest.raises(MemoryError, match="no room for the list"):
                    future.result(10)
        with shared.scan():
            assert pool.submit(shared, tiles(6, 1)).result(10)[:, 0].tolist() == [6]


def test_a_failed_batch_holds_no_tiles_once_its_error_is_gone():
    gone = []

    def fail(given):
        weakref.finalize(given, gone.append, True)
        raise RuntimeError("CUDA out of memory")

    gc.disable()
    try:
        with SharedBatches(Counting(), 4) as shared, shared.scan():
            shared._engine = fail
            with suppress(RuntimeError):
                shared(tiles(0, 2))
            for _ in range(100):
                if not gone:
                    threading.Event().wait(0.02)
            assert gone
    finally:
        gc.enable()


def test_a_run_in_batches_writes_what_one_without_them_writes(tiny_bundle, tmp_path, monkeypatch):
    import nibabel
    import numpy as np
    import scans as make

    for number in range(4):
        make.series(tmp_path / "in" / f"s{number}", make.volume((30 + number, 60, 70), seed=number))
    settings = {"model": tiny_bundle, "engine": "torch", "device": "cpu", "quiet": True}
    alone = fastmed.infer(tmp_path / "in", tmp_path / "alone", **settings)
    monkeypatch.setattr("fastmed.inference.run_network.usual_batch", lambda *_: 4)
    shared = fastmed.infer(tmp_path / "in", tmp_path / "shared", **settings)
    assert {row.verdict for row in shared.rows} == {"done"}
    for row in alone.rows:
        one, two = (
            np.asarray(nibabel.load(run.output / "series" / row.name / "labels.nii.gz").dataobj)
            for run in (alone, shared)
        )
        assert (one == two).mean() > 0.9999
