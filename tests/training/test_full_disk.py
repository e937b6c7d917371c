"""A disk that fills up at any write of a run is named, and costs no more than an epoch."""

import errno
import os

import pytest
from training_runs import rows, same

from fastmed.errors import FastmedError
from fastmed.writers import atomic

SETTINGS = ("loop.epochs=2", "loop.checkpoints=every")


@pytest.fixture
def disk(monkeypatch):
    """Counts the files that are put in place; from number `full_from` on there is no space."""

    class Disk:
        written, full_from = 0, None

        def replace(self, source, target):
            self.written += 1
            if self.full_from is not None and self.written >= self.full_from:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(source, target)

    real, found = os.replace, Disk()
    monkeypatch.setattr(atomic.os, "replace", found.replace)
    return found


def test_a_run_whose_disk_filled_up_says_so_and_goes_on_to_the_same_end(train, disk):
    whole = train(*SETTINGS, name="whole")
    before, disk.written = disk.written, 0
    train(*SETTINGS, name="warm")  # whose scans are in the cache already
    last = disk.written
    assert 10 < last <= before
    for number in (1, last // 3, 2 * last // 3, last):
        name = f"full-at-{number}"
        disk.written, disk.full_from = 0, number
        with pytest.raises(FastmedError, match="no space left on device; free some space"):
            train(*SETTINGS, name=name)
        disk.full_from = None
        resumed = train(*SETTINGS, name=name, resume=True)
        assert same(whole, resumed), name
        assert same(whole, resumed, "best"), name
        assert [row["epoch"] for row in rows(resumed)] == ["1", "2"]
        assert not list(resumed.path.rglob("*.tmp"))
