"""pydicom's own test files as one archive: the verdict on each, looked up in the file by hand."""

import importlib.util
from fnmatch import fnmatch
from pathlib import Path

import pydicom
import pytest

from fastmed.readers.index import index

ROOT = Path(__file__).parents[2]
OTHER, CAPTURE = ("skipped", "other modality"), ("skipped", "secondary capture")
LABELS, LOCALIZER = ("skipped", "label map"), ("skipped", "localizer")
NO_SCAN = ("skipped", "not dicom")

# The first pattern that fits a file's path says what it must be told as; no pattern fits in vain.
TRUTH = {
    # CT in slices
    "dicomdirtests/98892001/CT5N/*": ("ok", "uniform"),  # five slices, 2.5 mm apart
    "dicomdirtests/77654033/CT2/*": ("refused", "missing slices"),  # two, and two 200 mm higher
    "CT_small.dcm": ("refused", "single slice"),
    "693_J2KI.dcm": ("refused", "derived, single slice"),  # lossy JPEG 2000, DERIVED\\PRIMARY
    "J2K_pixelrep_mismatch.dcm": ("refused", "single slice"),
    "UN_sequence.dcm": ("failed", "truncated"),  # CT by its file meta, one element, no pixels
    "dicomdirtests/TINY_ALPHA/PT000000/*/*/IM*": ("failed", "truncated"),  # CT without pixels
    "dicomdirtests/98892001/CT2N/*": LOCALIZER,
    # labels
    "liver_1frame.dcm": LABELS,
    "liver_expb_1frame.dcm": LABELS,
    # other modalities and objects
    "MR_*.dcm": OTHER,  # one of them truncated, which is nothing to a CT archive
    "dicomdirtests/98892003/MR*": OTHER,
    "dicomdirtests/77654033/CR*": OTHER,
    "dicomdirtests/DICOMDIR*": OTHER,
    "dicomdirtests/TINY_ALPHA/DICOMDIR": OTHER,
    "ExplVR_BigEnd.dcm": OTHER,  # ultrasound
    "ExplVR_*NoMeta.dcm": OTHER,  # RT ion plans without preamble and file meta
    "examples_*.dcm": OTHER,  # ultrasound, and an MR with overlays
    "rtdose*.dcm": OTHER,
    "badVR.dcm": OTHER,  # an RT dose
    "rtplan*.dcm": OTHER,
    "rtstruct.dcm": OTHER,
    "reportsi*.dcm": OTHER,
    "test-SR.dcm": OTHER,
    "waveform_ecg.dcm": OTHER,
    "priv_SQ.dcm": OTHER,  # says MR Image Storage
    "no_meta_group_length.dcm": OTHER,  # says RT Image Storage
    "chrJap*.dcm": OTHER,  # CR
    "chrKoreanMulti.dcm": OTHER,  # CR
    "chrSQEncoding*.dcm": OTHER,  # MR by their file meta
    **{f"{name}.dcm": OTHER for name in ("fall", "spring", "summer", "winter")},  # palettes
    **{f"{name}.dcm": OTHER for name in ("hotiron", "hotmetalblue", "pet", "pet20step")},
    # secondary captures
    "SC_*.dcm": CAPTURE,
    "JPEG*.dcm": CAPTURE,  # of nuclear medicine, some near-lossless greys
    "JPGExtended.dcm": CAPTURE,
    "GDCMJ2K_TextGBR.dcm": CAPTURE,
    "image_dfl.dcm": CAPTURE,
    "chr*.dcm": CAPTURE,
    # sound as bytes, but of no class and modality
    "empty_charset_LEI.dcm": ("failed", "damaged"),
    "meta_missing_tsyntax.dcm": ("failed", "damaged"),
    "nested_priv_SQ.dcm": ("failed", "damaged"),
    "no_meta.dcm": ("failed", "not dicom"),  # a stray byte before the first element
    # no DICOM, nor named as such
    **{f"*.{end}": NO_SCAN for end in ("txt", "md", "icc", "dump", "json", "gz")},
    "*/README": NO_SCAN,
}


@pytest.fixture(scope="module")
def tool():
    """tools/dicom_verdicts.py as a module."""
    path = ROOT / "tools" / "dicom_verdicts.py"
    spec = importlib.util.spec_from_file_location("dicom_verdicts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not pydicom.__version__.startswith("3.0."), reason="other test files")
def test_each_of_pydicoms_files_gets_the_verdict_that_it_deserves(tool):
    folders = tool.pydicom_folders()
    files = sorted(
        path.relative_to(folder).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    )
    told = {
        member.relative: (entry.verdict, ", ".join(entry.conditions))
        for entry in index(folders)
        for member in entry.members
    }
    (rest,) = [entry for entry in index(folders) if entry.name == "other-files"]
    assert rest.files == len(files) - len(told)
    assert len(files) > 190
    unused = set(TRUTH)
    for file in files:
        pattern = next((p for p in TRUTH if fnmatch(file, p)), None)
        assert pattern, f"{file}: look at it and write down what it is"
        expected = TRUTH[pattern]
        assert told.get(file, NO_SCAN) == expected, file
        unused.discard(pattern)
    assert not unused


@pytest.mark.skipif(not pydicom.__version__.startswith("3.0."), reason="other test files")
def test_the_list_in_the_documentation_is_what_the_tool_prints(tool, scans):
    assert "\n".join(tool.table([*tool.pydicom_folders(), scans])) in (
        ROOT / "docs" / "dicom.md"
    ).read_text(encoding="utf-8")
