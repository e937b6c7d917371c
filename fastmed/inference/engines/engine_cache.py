"""Engine cache: what was built for one network, library and GPU stays for the next start."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmed.errors import FastmedError
from fastmed.writers.atomic import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What a kept file is and what it is for.

    kind: "engine", "timing" or the like. facts: JSON values, all that the content depends on; a
        file made for other facts is never taken for this one.
    """

    kind: str
    facts: Mapping[str, Any]

    @property
    def stem(self) -> str:
        """The files' name without its ending."""
        text = json.dumps(self.description, sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def description(self) -> dict[str, Any]:
        """What the JSON beside the file must say, as JSON gives it back."""
        return json.loads(json.dumps({"format": FORMAT, "kind": self.kind, **self.facts}))


@dataclass(frozen=True)
class EngineCache:
    """A folder of entries: `<stem>.bin` with the content, `<stem>.json` with its description.

    Both are written by a rename each, the JSON last and with the content's SHA-256, so that halves,
    damage and two processes that write at once are noticed when read. An entry that does not match
    is as good as absent; whoever wanted it makes it again. The folder may be deleted at any time.
    """

    folder: Path

    def read(self, entry: Entry) -> bytes | None:
        """The entry's content; None where it is absent, unreadable, damaged or of other facts."""
        content_path, json_path = self._paths(entry)
        try:
            said = json.loads(json_path.read_text(encoding="utf-8"))
            content = content_path.read_bytes()
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(said, dict) or said.get("entry") != entry.description:
            return None
        return content if said.get("sha256") == hashlib.sha256(content).hexdigest() else None

    def write(self, entry: Entry, content: bytes, **notes: Any) -> str:
        """Keeps the content; returns why it could not, or nothing where it could.

        notes: JSON values for the reader of the JSON, such as the seconds that it took.
        """
        content_path, json_path = self._paths(entry)
        said = {
            "entry": entry.description,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            **notes,
        }
        try:
            write_atomically(content_path, [content])
            write_atomically(json_path, [json.dumps(said, indent=1).encode()])
        except FastmedError as error:
            cause = error.__cause__
            reason = getattr(cause, "strerror", None) or str(cause)
            return (
                f"cache {self.folder}: cannot be written, {reason.lower()}; it is made again at "
                "the next start. Free some space or name another folder in FASTMED_CACHE"
            )
        return ""

    def forget(self, entry: Entry) -> None:
        """Removes an entry whose content turned out to be of no use."""
        for path in self._paths(entry):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _paths(self, entry: Entry) -> tuple[Path, Path]:
        return self.folder / f"{entry.stem}.bin", self.folder / f"{entry.stem}.json"
