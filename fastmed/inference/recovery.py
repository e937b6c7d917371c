"""Recovery: what processes that no longer live left in a run's folder and journal."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastmed.inference.journal import Journal
from fastmed.inference.journal_units import Unit
from fastmed.inference.owners import is_alive, living, tokens_of
from fastmed.inference.series_folder import SeriesFolder, clean_up, is_whole


def recover(journal: Journal, spared: Collection[str] = ()) -> None:
    """Brings what the dead had in hand to an end: complete results are put in their place, all
    else waits again, and no half-written file stays.

    spared: tokens of the dead whose units are left as they are. One process at a time does this.
    """
    with _alone(journal.folder):
        for owner in journal.dead_owners():
            if owner in spared:
                continue
            for unit in journal.in_hand(owner):
                is_in_place = False
                with suppress(OSError):  # what cannot be put in its place is made again
                    is_in_place = unit.state == "written" and _put_in_place(journal, owner, unit)
                if is_in_place:
                    journal.done(unit.name, owner)
                else:
                    journal.wait_again(unit.name, owner)
        for token in tokens_of(journal.folder):
            is_alive(journal.folder, token)  # removes the files of the dead
        alive = {*living(journal.folder), *spared}
        clean_up(journal.folder, lambda token: token in alive)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process does the same in a folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _put_in_place(journal: Journal, owner: str, unit: Unit) -> bool:
    """Whether a result that was written completely is in its place now."""
    folder = SeriesFolder(journal.folder, unit.name, owner)
    if folder.partial.is_dir() and is_whole(folder.partial, unit.files, by_content=True):
        folder.put_in_place()
        return True
    if folder.path.is_dir() and is_whole(folder.path, unit.files, by_content=True):
        shutil.rmtree(folder.old, ignore_errors=True)
        return True
    if folder.old.exists() and not folder.path.exists():
        os.replace(folder.old, folder.path)
    return not unit.files


def remove_temporary_files(journal: Journal, own: str) -> None:
    """Removes half-written tables, where no process but this one's `own` may be writing one."""
    if living(journal.folder).keys() <= {own}:
        for left in journal.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
