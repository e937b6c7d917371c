"""Encryption: what can be told of a file whose content, or a part of it, only a key opens."""

from __future__ import annotations

from fastmed.readers.dicom_quiet import quietly

_ENVELOPED_DATA = bytes.fromhex("06092a864886f70d010703")  # CMS, as secure DICOM files are
_MARKS = {
    b"-----BEGIN CMS-----": "a CMS envelope",
    b"-----BEGIN PKCS7-----": "a CMS envelope",
    b"-----BEGIN PGP MESSAGE-----": "a PGP message",
    b"Salted__": "a file encrypted by OpenSSL",
    b"age-encryption.org/": "a file encrypted by age",
}
_SUFFIXES = (".p7m", ".p7", ".cms", ".pgp", ".gpg", ".asc", ".age", ".enc")
_HEAD_BYTES = 64
_ENCRYPTED_ATTRIBUTES = 0x04000500


def bare_name(name: str) -> str:
    """The name that a file had before it was encrypted, as far as its ending tells."""
    return next((name[: -len(end)] for end in _SUFFIXES if name.lower().endswith(end)), name)


def envelope_of(path: str) -> str:
    """Says as which kind of envelope a whole file is encrypted; "" where nothing tells so.

    Raises OSError where the file cannot be opened.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[:1] == b"\x30" and _ENVELOPED_DATA in head[:24]:
        return "a CMS envelope"
    return next((words for mark, words in _MARKS.items() if head.startswith(mark)), "")


def has_encrypted_attributes(path: str) -> bool:
    """Whether a DICOM file keeps attributes in an EncryptedAttributesSequence."""
    import pydicom

    try:
        with quietly():
            dataset = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=[_ENCRYPTED_ATTRIBUTES], force=True
            )
    except Exception:  # pydicom raises whatever its parsers meet in damaged bytes
        return False
    return _ENCRYPTED_ATTRIBUTES in dataset
