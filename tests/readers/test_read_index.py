"""fastmed.index: one verdict with a reason for each thing in a folder."""

import gzip
import re

import numpy as np
import pytest
import scans as make

import fastmed
from fastmed.errors import SeriesError
from fastmed.readers.index import index, read, read_series

UID = {
    "dose report": "1.2.840.10008.5.1.4.1.1.88.67",
    "capture": "1.2.840.10008.5.1.4.1.1.7",
    "mr": "1.2.840.10008.5.1.4.1.1.4",
    "segmentation": "1.2.840.10008.5.1.4.1.1.66.4",
}


def only(entries):
    assert len(entries) == 1, [(e.source, e.kind, e.reason) for e in entries]
    return entries[0]


def test_a_uniform_series_is_ok_and_its_geometry_is_in_words(tmp_path):
    make.series(tmp_path / "scan")
    entry = only(index(tmp_path))
    assert (entry.kind, entry.verdict, entry.reason) == ("ct", "ok", "CT volume, uniform 2 mm")
    assert entry.source == "scan"
    assert entry.warnings == ()
    assert entry.files == 9
    assert entry.shape_zyx == make.SHAPE
    assert entry.spacing_mm_zyx == pytest.approx((2.0, 0.75, 0.75))
    assert re.fullmatch(r"2\.25\.\d+", entry.name)


DOUBTFUL = {
    "one slice is missing": (
        lambda files: files[4].unlink(),
        "refused",
        "1 slice missing between z = -104.0 and -100.0 mm; --lenient interpolates them",
    ),
    "slices are missing at several places": (
        lambda files: [files[k].unlink() for k in (2, 3, 6)],
        "refused",
        "3 slices missing: 2 between z = -108.0 and -102.0 mm, 1 between z = -100.0 and -96.0 mm; "
        "--lenient interpolates them",
    ),
    "one slice is off its place": (
        lambda files: make.move(files[4], by_lps_mm=(0, 0, 0.5)),
        "refused",
        "unevenly spaced (1.50, 2.00 and 2.50 mm); --lenient interpolates a uniform grid",
    ),
    "one slice is shifted sideways": (
        lambda files: make.move(files[4], by_lps_mm=(0.4, 0, 0)),
        "refused",
        "slices lie up to 0.40 mm beside the line of the stack",
    ),
    "two different slices are at one place": (
        lambda files: make.move(files[4], by_lps_mm=(0, 0, 2)),
        "refused",
        "2 different slices at z = -100.0 mm",
    ),
    "orientations are mixed": (
        lambda files: make.edit(files[4], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        "refused",
        "slices of mixed orientations in one series",
    ),
    "image sizes are mixed": (
        lambda files: make.edit(files[4], Rows=6, PixelData=b"\0" * 2 * 6 * 14),
        "refused",
        "slices of mixed sizes (12 x 14 and 6 x 14) in one series",
    ),
    "pixel spacings are mixed": (
        lambda files: make.edit(files[4], PixelSpacing=[0.8, 0.8]),
        "refused",
        "slices of mixed pixel spacings (0.75 and 0.8 mm) in one series",
    ),
    "there is one slice": (
        lambda files: [file.unlink() for file in files[1:]],
        "refused",
        "a series with one slice",
    ),
    "a position is absent": (
        lambda files: make.edit(files[3], ImagePositionPatient=None),
        "refused",
        "0004.dcm has no usable ImagePositionPatient (it is absent)",
    ),
    "an orientation is absent": (
        lambda files: make.edit(files[3], ImageOrientationPatient=None),
        "refused",
        "no usable ImageOrientationPatient",
    ),
    "an orientation is not at right angles": (
        lambda files: make.edit_all(files, ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]),
        "refused",
        "not unit vectors at right angles",
    ),
    "the pixel spacing is zero": (
        lambda files: make.edit_all(files, PixelSpacing=[0, 0]),
        "refused",
        "no usable PixelSpacing (0, 0)",
    ),
    "the pixel spacing is absent": (
        lambda files: make.edit_all(files, PixelSpacing=None),
        "refused",
        "no usable PixelSpacing (it is absent)",
    ),
    "there is no rescale": (
        lambda files: make.edit_all(
            files, RescaleSlope=None, RescaleIntercept=None, RescaleType=None
        ),
        "refused",
        "no RescaleSlope and RescaleIntercept",
    ),
    "the rescale slope is zero": (
        lambda files: make.edit_all(files, RescaleSlope=0),
        "refused",
        "RescaleSlope 0.0 is not usable",
    ),
    "values are no HU": (
        lambda files: make.edit_all(files, RescaleType="Z_EFF"),
        "refused",
        "RescaleType 'Z_EFF' is not HU",
    ),
    "values are inverted": (
        lambda files: make.edit_all(files, PhotometricInterpretation="MONOCHROME1"),
        "refused",
        "MONOCHROME1",
    ),
    "a file is truncated": (
        lambda files: make.truncate(files[5], lose_bytes=100),
        "failed",
        "0006.dcm is truncated: 236 of 336 bytes of pixels; copy it again",
    ),
    "a file has no pixel data": (
        lambda files: make.edit(files[5], PixelData=None),
        "failed",
        "0006.dcm has no pixel data",
    ),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_strict_names_what_is_wrong(case, tmp_path):
    damage, verdict, reason = DOUBTFUL[case]
    damage(make.series(tmp_path))
    entry = only(index(tmp_path))
    assert entry.kind == "ct"
    assert (entry.verdict, entry.geometry) == (verdict, None)
    assert reason in entry.reason
    with pytest.raises(SeriesError, match=re.escape(entry.reason)):
        read_series(entry)
    with pytest.raises(SeriesError, match=re.escape(entry.reason)):
        read(tmp_path)


NO_CT = {
    "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "dose report": {
        "SOPClassUID": UID["dose report"],
        "Modality": "SR",
        "PixelData": None,
        "Rows": None,
    },
    "screen capture": {"SOPClassUID": UID["capture"]},
    "other modality": {"SOPClassUID": UID["mr"], "Modality": "MR"},
}


@pytest.mark.parametrize("kind", NO_CT)
def test_what_is_no_ct_is_skipped_and_told_apart_within_one_series(kind, tmp_path):
    files = make.series(tmp_path)
    make.edit(files[-1], **NO_CT[kind])
    entries = {entry.kind: entry for entry in index(tmp_path)}
    assert set(entries) == {"ct", kind}
    assert entries["ct"].verdict == "ok"
    assert entries["ct"].files == 8
    assert entries[kind].verdict == "skipped"
    assert entries[kind].reason
    assert entries["ct"].name + "-2" == entries[kind].name


def test_colour_pictures_and_protocol_pages_in_ct_storage_are_screen_captures(tmp_path):
    colour, page, *_ = make.series(tmp_path, make.volume((4, 12, 14)))
    make.edit(
        colour,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=bytes(12 * 14 * 3),
    )
    make.edit(page, ImageType=["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"])
    kinds = sorted((entry.kind, entry.files) for entry in index(tmp_path))
    assert kinds == [("ct", 2), ("screen capture", 1), ("screen capture", 1)]


def test_derived_slices_with_a_geometry_are_ct(tmp_path):
    make.edit_all(make.series(tmp_path), ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert only(index(tmp_path)).verdict == "ok"


def test_the_written_localizer_is_told_from_its_own_series(tmp_path):
    make.series(tmp_path, localizer=True)
    entries = {entry.kind: entry for entry in index(tmp_path)}
    assert entries["ct"].verdict == "ok"
    assert entries["localizer"].verdict == "skipped"


def test_series_mixed_in_one_folder_without_extensions_are_told_apart(tmp_path):
    for seed in range(3):
        scan = make.volume((4 + seed, 12, 14), seed=seed)
        for k, file in enumerate(make.series(tmp_path / f"{seed}", scan)):
            file.rename(tmp_path / f"IM{(7 * k + 3 * seed) % 11:02d}{seed}")
        (tmp_path / f"{seed}").rmdir()
    entries = index(tmp_path)
    assert sorted(entry.files for entry in entries) == [4, 5, 6]
    assert {entry.verdict for entry in entries} == {"ok"}
    assert len({entry.name for entry in entries}) == 3


def test_series_without_uids_are_grouped_by_what_they_share_and_named_without_their_path(tmp_path):
    blank = {"SeriesInstanceUID": "", "StudyInstanceUID": "", "SOPInstanceUID": None}
    names = []
    for place in ("a", "b/c"):
        for seed in range(2):
            files = make.series(tmp_path / place / "d", make.volume(seed=seed))
            make.edit_all(files, **blank)
            for file in files:
                file.rename(file.with_name(f"{seed}-{file.name}"))
        entries = index(tmp_path / place)
        assert [entry.verdict for entry in entries] == ["ok", "ok"]
        names.append({entry.name for entry in entries})
    assert names[0] == names[1]
    assert all(re.fullmatch("[0-9a-f]{64}", n) for n in names[0])


def test_other_files_are_one_skipped_entry(tmp_path):
    make.series(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "._0001.dcm").write_bytes(b"\0\5\x16\7 Mac OS X")
    (tmp_path / ".gitkeep").write_bytes(b"")
    (tmp_path / "empty.log").write_bytes(b"")
    (tmp_path / "DICOMDIR").write_bytes(
        (tmp_path / "0001.dcm")
        .read_bytes()
        .replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.1.3.10\0     \0")
    )
    entries = [entry for entry in index(tmp_path) if entry.kind != "ct"]
    assert {(entry.kind, entry.verdict) for entry in entries} == {("not an image", "skipped")}
    assert sum(entry.files for entry in entries) == 5


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.dcm", b"", "empty file"),
        ("1.2.840.99", b"", "empty file"),
        ("a.nii.gz", b"", "empty file"),
        ("a.dcm", b"hello", "holds no DICOM"),
        ("a.nii.gz", b"hello", "header cannot be read"),
        ("a.nii", b"hello" * 100, "header cannot be read"),
        ("a.mha", b"hello", "header cannot be read"),
        ("a.nrrd", b"hello", "header cannot be read"),
        ("a.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 300, ""),
        ("a.dcm", b"\0" * 128 + b"DICM", ""),
    ],
)
def test_damaged_files_are_failed_and_stop_nothing_else(name, content, reason, tmp_path):
    make.series(tmp_path / "scan")
    (tmp_path / name).write_bytes(content)
    entries = {entry.verdict: entry for entry in index(tmp_path)}
    assert set(entries) == {"ok", "failed"}
    assert reason in entries["failed"].reason
    assert entries["failed"].source == name
    assert "\n" not in entries["failed"].reason


def test_a_header_cut_short_is_failed_at_any_length(tmp_path):
    source = make.series(tmp_path / "whole")[0].read_bytes()
    (tmp_path / "cut").mkdir()
    class_uid = source.rindex(b"1.2.840.10008.5.1.4.1.1.2")  # a part of it names something else
    in_media_class_uid = range(165, 195)
    within_class_uid = range(class_uid, class_uid + 30)
    for length in [*range(133, len(source), 29), *in_media_class_uid, *within_class_uid]:
        (tmp_path / "cut" / "a.dcm").write_bytes(source[:length])
        entry = only(index(tmp_path / "cut"))
        assert entry.verdict == "failed", (length, entry.reason)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_no_reason_shows_text_of_a_patient(tmp_path):
    name = "DOE^JANE"
    files = make.series(tmp_path / "a", patient=name)
    for field in ("Modality", "RescaleType", "PhotometricInterpretation", "ImageType"):
        for k, file in enumerate(make.series(tmp_path / field, make.volume(seed=len(field)))):
            make.edit(file, **{field: name} if k else {})
    content = files[0].read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "b").mkdir()
    for k in range(150):
        damaged = bytearray(content)
        for place in rng.integers(132, 1000, 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "b" / f"{k}.dcm").write_bytes(damaged)
    for entry in index(tmp_path):
        assert "JANE" not in f"{entry.reason} {entry.warnings} {entry.name}"
        assert entry.reason.isprintable()


def test_identical_copies_are_left_out_with_a_warning(tmp_path):
    files = make.series(tmp_path / "scan")
    (tmp_path / "scan" / "copy.dcm").write_bytes(files[3].read_bytes())
    entry = only(index(tmp_path))
    assert entry.verdict == "ok"
    assert entry.shape_zyx == make.SHAPE
    assert entry.warnings == ("1 identical copy of a slice left out: scan/copy.dcm",)


def test_a_truncated_gzip_is_named(tmp_path):
    import nibabel

    path = tmp_path / "labels.nii.gz"
    noise = np.random.default_rng(0).integers(0, 9, (40, 40, 40), np.uint8)
    nibabel.Nifti1Image(noise, np.eye(4)).to_filename(path)
    make.truncate(path, lose_bytes=500)
    entry = only(index(tmp_path))
    assert entry.verdict == "failed"
    assert "truncated" in entry.reason
    path.write_bytes(gzip.compress(b"hello" * 100))
    assert only(index(tmp_path)).verdict == "failed"


def test_the_package_offers_index_and_read():
    assert fastmed.index is index
    assert fastmed.read is read
