"""UIDs that follow from what they name, so that the same input gives the same bytes."""

from __future__ import annotations

import hashlib
import re

_UID = re.compile(r"[0-9.]{1,64}")


def uid_from(identity: str) -> str:
    """A UID that follows from a text: 2.25 and 122 bits of its SHA-256, as RFC 4122 UUIDs have."""
    return f"2.25.{int(digest(identity), 16) >> 134}"


def digest(identity: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()


def sane_uid(text: str) -> str:
    """The text where it is a UID, else "": other text in a UID's place may be a patient's name."""
    return text if _UID.fullmatch(text) else ""
