"""The content of a scan: one hash over the bytes of all its files."""

from __future__ import annotations

import hashlib

from fastmed.readers.series import Series


def content_sha256(entry: Series) -> str:
    """SHA-256 over the hashes of an entry's files, in whatever folders and order they lie.

    Raises OSError where a file cannot be read.
    """
    from fastmed.readers.packed import unpacked

    whole = hashlib.sha256()
    with unpacked(entry.members) as members:
        hashes = []
        for member in members:
            with open(member.path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").digest())
    for one in sorted(hashes):
        whole.update(one)
    return whole.hexdigest()
