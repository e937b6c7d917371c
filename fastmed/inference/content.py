"""The content of a scan: one hash over the bytes of all its files."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from fastmed.readers.series import Series

_THREADS = 4  # hashing lets others run


def content_sha256(entry: Series) -> str:
    """SHA-256 over the hashes of an opened entry's files, whatever their names and their order.

    Raises OSError where a file cannot be read.
    """
    with ThreadPoolExecutor(min(_THREADS, len(entry.members) or 1)) as pool:
        hashes = pool.map(_sha256, [member.path for member in entry.members])
        return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def _sha256(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
