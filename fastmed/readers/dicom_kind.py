"""DICOM kinds: what a file is, told from its header: CT slice, localizer, dose report, capture."""

from __future__ import annotations

import re

from fastmed.readers.dicom_header import Header

_CT = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_DOSE_REPORTS = tuple(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in (67, 68, 73, 74, 75, 76))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SEGMENTATIONS = tuple(f"1.2.840.10008.5.1.4.1.1.66.{n}" for n in (4, 5, 7))
_DIRECTORY = "1.2.840.10008.1.3.10"

# Words of ImageType (0008,0008), of which vendors make phrases such as "MIP_3D" or "CSA MIP".
_PROJECTED = {"MIP", "MINIP", "MAX_IP", "MIN_IP", "MAXIMUM", "MINIMUM", "PROJECTION"}
_RENDERED = {"VRT", "VOLUME_RENDER", "SURFACE_RENDER", "SSD", "CURVED_MPR", "CPR", "CURVED"}
_CALCULATED = {
    *("SUBTRACTION", "DIVISION", "MULTIPLICATION", "STD_DEVIATION", "STD_DEV", "T_TEST", "Z_SCORE"),
    *("CBF", "CBV", "MTT", "TTP", "TMAX", "TTD", "PERFUSION", "DIFFERENCE"),
}
_LABELS = {"SEGMENTATION", "LABEL", "LABELMAP", "LABEL_MAP", "MASK"}
_BETWEEN_WORDS = re.compile("[ _/.-]+")


def kind_of(header: Header) -> tuple[str, str]:
    """Returns (kind, reason), both empty of what is yet to be judged: the geometry of CT slices.

    The kind of a file that holds many slices is "enhanced ct".
    """
    sop_class = header.sop_class_uid
    words = set(header.image_type)
    if sop_class == _DIRECTORY:
        return "not an image", "a DICOMDIR, which lists files and holds no image"
    if sop_class in _DOSE_REPORTS:
        return "dose report", "a radiation dose report"
    if sop_class in _SEGMENTATIONS:
        return "label map", f"{_name(header)}: labels, not CT"
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return "screen capture", "a secondary capture: a picture without CT geometry"
    if sop_class not in (_CT, *_ENHANCED_CT, "") or header.modality not in ("CT", ""):
        return "other modality", f"{_name(header)}, not CT"
    if words & {"LOCALIZER", "SCOUT", "CT_SOM5 TOP"}:
        return "localizer", "a localizer: a projection for planning, not a slice"
    if header.samples != 1 or header.photometric in ("RGB", "PALETTE COLOR", "YBR_FULL"):
        return "screen capture", "a colour picture: its values are no Hounsfield units"
    if words & {"CT_SOM5 PROT", "SCREEN SAVE", "SCREENSHOT", "PROTOCOL", "DOSE_INFO"}:
        return "screen capture", "a page of text or figures, not a slice"
    if words & _LABELS:
        return "label map", "a label map by its ImageType, not CT"
    if reason := _why_no_slice(header):
        return "derived", reason
    if sop_class in _ENHANCED_CT or header.frames > 1:
        return "enhanced ct", "a multi-frame CT: one file for many slices"
    if not header.position and {"DERIVED", "SECONDARY"} <= words:
        return "screen capture", "a derived secondary picture without a position in the patient"
    return "ct", ""


CONDITION_OF = {
    "not an image": "other modality",
    "dose report": "dose report",
    "label map": "label map",
    "screen capture": "secondary capture",
    "other modality": "other modality",
    "localizer": "localizer",
    "derived": "derived",
}


def _why_no_slice(header: Header) -> str:
    """Why a derived image has no Hounsfield units on a plane of the patient; "" where it may."""
    phrases = {*header.image_type}
    phrases |= {part for word in header.image_type for part in _BETWEEN_WORDS.split(word)}
    if phrases & _PROJECTED:
        return "a projection of many slices (MIP or the like), not a slice"
    if phrases & _RENDERED:
        return "a rendered or curved view, whose pixels lie in no plane of the patient"
    if phrases & _CALCULATED and is_derived(header):
        return "calculated from other images: its values are no Hounsfield units"
    return ""


def is_derived(header: Header) -> bool:
    """Whether a CT slice says that it was made of others, as reformats and averages do."""
    return bool({"DERIVED", "SECONDARY"} & set(header.image_type[:2]))


def _name(header: Header) -> str:
    """What the file says it is, in words that no damaged text can get into."""
    from pydicom.uid import UID_dictionary

    name = UID_dictionary.get(header.sop_class_uid, ("an unknown or private kind of object",))[0]
    if header.sop_class_uid in (_CT, ""):
        return f"an image of modality {header.modality}"
    return f"{name} ({header.modality})" if header.modality else name
