"""DICOM kinds: what a file is, told from its header: CT slice, localizer, dose report, capture."""

from __future__ import annotations

from fastmed.readers.dicom_header import Header

_CT = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_DOSE_REPORTS = tuple(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in (67, 68, 73, 74, 75, 76))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIRECTORY = "1.2.840.10008.1.3.10"


def kind_of(header: Header) -> tuple[str, str]:
    """Returns (kind, reason); the reason of "ct" is empty, as its slices are yet to be judged."""
    sop_class = header.sop_class_uid
    words = set(header.image_type)
    if sop_class == _DIRECTORY:
        return "not an image", "a DICOMDIR, which lists files and holds no image"
    if sop_class in _DOSE_REPORTS:
        return "dose report", "a radiation dose report"
    if sop_class in _ENHANCED_CT:
        return "enhanced ct", _ENHANCED_REASON
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return "screen capture", "a secondary capture: a picture without CT geometry"
    if sop_class not in (_CT, "") or header.modality not in ("CT", ""):
        return "other modality", f"{_name(header)}, not CT"
    if words & {"LOCALIZER", "SCOUT", "CT_SOM5 TOP"}:
        return "localizer", "a localizer: a projection for planning, not a slice"
    if header.samples != 1 or header.photometric in ("RGB", "PALETTE COLOR", "YBR_FULL"):
        return "screen capture", "a colour picture: its values are no Hounsfield units"
    if words & {"CT_SOM5 PROT", "SCREEN SAVE", "SCREENSHOT", "PROTOCOL", "DOSE_INFO"}:
        return "screen capture", "a page of text or figures, not a slice"
    if header.frames > 1:
        return "enhanced ct", _ENHANCED_REASON
    if not header.position and {"DERIVED", "SECONDARY"} <= words:
        return "screen capture", "a derived secondary picture without a position in the patient"
    return "ct", ""


_ENHANCED_REASON = (
    "multi-frame CT is not read yet; export the series as one file per slice (CT Image Storage)"
)


def _name(header: Header) -> str:
    """What the file says it is, in words that no damaged text can get into."""
    from pydicom.uid import UID_dictionary

    name = UID_dictionary.get(header.sop_class_uid, ("an unknown or private kind of object",))[0]
    if header.sop_class_uid in (_CT, ""):
        return f"an image of modality {header.modality}"
    return f"{name} ({header.modality})" if header.modality else name
