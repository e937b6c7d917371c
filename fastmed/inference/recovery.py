"""Recovery: what processes that no longer live left in a run's folder and journal."""

from __future__ import annotations

import os
import shutil

from fastmed.inference.journal import Journal, Unit
from fastmed.inference.owners import is_alive, tokens_of
from fastmed.inference.series_folder import SeriesFolder, clean_up, is_whole


def recover(journal: Journal) -> None:
    """Brings what the dead had in hand to an end: complete results are put in their place, all
    else waits again, and no half-written file stays."""
    for owner, unit in journal.left_by_the_dead():
        if unit.state == "written" and _put_in_place(journal, owner, unit):
            journal.done(unit.name)
        elif unit.state in ("running", "written"):
            journal.wait_again(unit.name)
    for token in tokens_of(journal.folder):
        is_alive(journal.folder, token)  # removes the files of the dead
    clean_up(journal.folder, lambda token: is_alive(journal.folder, token))


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


def remove_temporary_files(journal: Journal) -> None:
    """Removes half-written tables, where no other process is at work that may be writing one."""
    if not any(is_alive(journal.folder, token) for token in journal.owners()):
        for left in journal.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)
