"""A result file is complete or absent: every writer puts its bytes on disk through here."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from fastmed.errors import FastmedError

_ADVICE = {
    errno.ENOSPC: "free some space or name another --output",
    errno.EDQUOT: "free some of your quota or name another --output",
    errno.EROFS: "name an --output on a disk that can be written",
    errno.EACCES: "name an --output folder that you may write to",
    errno.EPERM: "name an --output folder that you may write to",
}


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that there is no room left on a disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_atomically(
    path: str | os.PathLike, pieces: Iterable[bytes], *, durable: bool = False
) -> None:
    """Writes bytes to a temporary name beside `path`, then renames it; makes missing folders.

    pieces: the file's content in order; it may be a generator, which is consumed while writing.
    durable: be safe on the disk before the rename, so that after a crash of the machine, too, the
        name holds the old or the new content; off for files that another step makes safe.

    Raises FastmedError, naming the path and what to do, where the disk refuses. Whatever is
    raised, `path` is as it was before and no temporary file stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                for piece in pieces:
                    file.write(piece)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = _ADVICE.get(error.errno, "check the disk or name another --output")
        raise FastmedError(f"{path}: cannot be written, {reason}; {advice}") from error
