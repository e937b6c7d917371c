"""Damage: files as broken disks, transfers, editors and attackers leave them, by seed."""

from __future__ import annotations

import re

import numpy as np

_TAG = re.compile(rb"<[^>]+>")
_COORDINATE = re.compile(rb"(?<=min>|max>)\d+")
_BOMB = b"".join(
    b'<!ENTITY e%d "%s">' % (k, (b"&e%d;" % (k - 1)) * 10 if k else b"ha") for k in range(12)
)


def _truncated(rng, content):
    return content[: rng.integers(len(content))]


def _flipped(rng, content):
    damaged = bytearray(content)
    for at in rng.integers(len(content), size=rng.integers(1, 9)):
        damaged[at] ^= rng.integers(1, 256)
    return bytes(damaged)


def _without_tags(rng, content):
    tags = list(_TAG.finditer(content))
    gone = set(rng.integers(len(tags), size=rng.integers(1, 5)).tolist())
    if rng.random() < 0.5:  # both ends of one element, which leaves sound XML
        name = re.match(rb"</?(\w+)", tags[min(gone)][0])[1]
        same = [k for k, tag in enumerate(tags) if re.match(rb"</?%s\b" % name, tag[0])]
        gone = set(same[:2])
    for k in sorted(gone, reverse=True):
        content = content[: tags[k].start()] + content[tags[k].end() :]
    return content


def _doctype(rng, content, declaration):
    name = b"&e11;" if b"e11" in declaration else b"&e;"
    return declaration + content.replace(b"1-01", name if rng.random() < 0.9 else b"1-01")


def _bomb(rng, content):
    return _doctype(rng, content, b"<!DOCTYPE annotation [" + _BOMB + b"]>")


def _external(rng, content):
    where = rng.choice(["file:///etc/passwd", "http://127.0.0.1:9/x", "/dev/zero"]).encode()
    kind = b"% e" if rng.random() < 0.3 else b"e"
    return _doctype(rng, content, b"<!DOCTYPE a [<!ENTITY " + kind + b' SYSTEM "%s">]>' % where)


def _swapped_numbers(rng, content):
    numbers = list(_COORDINATE.finditer(content))
    one, other = sorted(rng.choice(len(numbers), 2, replace=False))
    a, b = numbers[one], numbers[other]
    return content[: a.start()] + b[0] + content[a.end() : b.start()] + a[0] + content[b.end() :]


def _number(rng, content, words):
    numbers = list(_COORDINATE.finditer(content))
    at = numbers[rng.integers(len(numbers))]
    return content[: at.start()] + str(rng.choice(words)).encode() + content[at.end() :]


def _no_number(rng, content):
    return _number(rng, content, ["NaN", "nan", "inf", "-inf", "", "1,5", "0x10", "\u0663", "ten"])


def _huge_number(rng, content):
    return _number(rng, content, ["9" * 400, "1e308", "1e309", "99999999", "-1e300", "9" * 5000])


def _encoded(rng, content):
    text = content.decode()
    codec = rng.choice(["utf-16-be", "utf-32", "cp037", "utf-7-named", "no-such", "big5-named"])
    if codec.endswith(("named", "such")):
        name = codec.removesuffix("-named")
        return b'<?xml version="1.0" encoding="%s"?>' % name.encode() + content
    return text.encode(codec)


def _binary(rng, content):
    return rng.bytes(rng.integers(1, 2000))


def _zeroed(rng, content):
    start = rng.integers(len(content) - 1)
    stop = rng.integers(start + 1, len(content))
    return content[:start] + b"\0" * (stop - start) + content[stop:]


# Kind: (what it does, whether it can leave a file that reads as a sound one).
XML = {
    "empty": (lambda rng, content: b" " * rng.integers(3), False),
    "truncated": (_truncated, False),
    "bytes flipped": (_flipped, True),
    "tags deleted": (_without_tags, True),
    "entity bomb": (_bomb, False),
    "external entity": (_external, False),
    "numbers swapped": (_swapped_numbers, True),
    "no number": (_no_number, False),
    "huge number": (_huge_number, False),
    "wrong encoding": (_encoded, True),  # UTF-16 can be told without being named
    "binary": (_binary, False),
    "a piece zeroed": (_zeroed, False),
}


def damaged_xml(seed: int, content: bytes) -> tuple[str, bytes]:
    """One damaged file: (kind, bytes)."""
    kind = list(XML)[seed % len(XML)]
    return kind, XML[kind][0](np.random.default_rng(seed), content)


def _dicom_header_zeroed(rng, content):
    return b"\0" * int(rng.integers(132, 400)) + content[400:]


def _dicom_header_flipped(rng, content):
    return _flipped(rng, content[:900]) + content[900:]


DICOM = {
    "empty": lambda rng, content: b"",
    "truncated": _truncated,
    "header flipped": _dicom_header_flipped,
    "flipped": _flipped,
    "header zeroed": _dicom_header_zeroed,
    "a piece zeroed": _zeroed,
    "binary": _binary,
}
TAGS = (
    "SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns", "PixelData", "RescaleSlope", "BitsAllocated",
)  # fmt: skip
OTHER_VALUES = {
    "Modality": "PT", "Rows": 7, "BitsAllocated": 1, "RescaleSlope": "nan",
    "PhotometricInterpretation": "RGB", "ImagePositionPatient": [1, 2, "1e300"],
    "PixelSpacing": [0, 0], "SOPInstanceUID": "../../etc/passwd", "SeriesInstanceUID": "..",
    "NumberOfFrames": "9",
}  # fmt: skip
