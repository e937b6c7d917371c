"""The content of a scan: one hash over the bytes of all its files."""

from __future__ import annotations

import hashlib

from fastmed.readers.series import Series


def content_sha256(entry: Series) -> str:
    """SHA-256 over the hashes of an opened entry's files, whatever their names and their order.

    Raises OSError where a file cannot be read.
    """
    hashes = []
    for member in entry.members:
        with open(member.path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").digest())
    return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()
