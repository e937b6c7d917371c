"""Every condition of a DICOM series: how it is told, and what strict and lenient make of it."""

import numpy as np
import pydicom
import pytest
import scans as make

from fastmed.readers.index import index, read_series
from fastmed.readers.series import CONDITIONS, Series


def shift_by(files, shifts_mm) -> None:
    for file, shift in zip(files, shifts_mm, strict=True):
        make.move(file, by_lps_mm=(0, 0, shift))


def lean(folder) -> None:
    for file in folder.iterdir():
        file.unlink()
    make.series(folder, make.volume(tilt_degrees=18.5))


def mpeg(file) -> None:
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)


def encrypt_attributes(file) -> None:
    """As de-identification leaves a file whose positions only a key brings back."""
    item = pydicom.Dataset()
    item.EncryptedContentTransferSyntaxUID = "1.2.840.10008.1.2"
    item.EncryptedContent = b"\x30\x80" + bytes(60)
    make.edit(file, EncryptedAttributesSequence=[item], ImagePositionPatient=None)


def shrink(files) -> None:
    """To slices 0.02 mm apart, with pixels of 0.2 micrometres."""
    for k, file in enumerate(files):
        make.edit(file, ImagePositionPatient=[0, 0, 0.02 * k], PixelSpacing=[0.0002, 0.0002])


def bare_unsigned(folder) -> None:
    for file in folder.iterdir():
        file.unlink()
    files = make.series(folder, make.volume(dtype=np.uint16))
    make.edit_all(files, RescaleSlope=None, RescaleIntercept=None, RescaleType=None)


# By what is done to a uniform series of 9 slices: its conditions under lenient, which goes further
# than strict, and the verdicts of strict and lenient.
SERIES = {
    "nothing": (lambda files: None, ["uniform"], "ok", "ok"),
    "tilted": (lambda files: lean(files[0].parent), ["uniform", "tilted"], "ok", "ok"),
    "uneven": (
        lambda files: shift_by(files, [0, 0, 0, 0, 0, 0.9, 0.9, 0.9, 3.1]),
        ["uneven"],
        "refused",
        "ok",
    ),
    "a slice missing": (lambda files: files[4].unlink(), ["missing slices"], "refused", "ok"),
    "more slices missing than there": (
        lambda files: [make.move(file, by_lps_mm=(0, 0, 40)) for file in files[5:]],
        ["missing slices"],
        "refused",
        "refused",
    ),
    "shifted a little": (
        lambda files: make.move(files[4], by_lps_mm=(0.4, 0, 0)),
        ["shifted slices"],
        "refused",
        "ok",
    ),
    "shifted by more than a pixel": (
        lambda files: make.move(files[4], by_lps_mm=(2, 0, 0)),
        ["shifted slices"],
        "refused",
        "refused",
    ),
    "shifted a little, and a slice missing": (
        lambda files: [make.move(files[6], by_lps_mm=(0.4, 0, 0)), files[4].unlink()],
        ["missing slices", "shifted slices"],
        "refused",
        "ok",
    ),
    "shifted a little, and more slices missing than there": (
        lambda files: (
            [make.move(file, by_lps_mm=(0, 0, 40)) for file in files[5:]]
            + [make.move(files[3], by_lps_mm=(0.4, 0, 0))]
        ),
        ["missing slices", "shifted slices"],
        "refused",
        "refused",
    ),
    "identical copies": (
        lambda files: [
            file.with_suffix(".copy").write_bytes(file.read_bytes()) for file in files[2:4]
        ],
        ["uniform", "identical copies"],
        "ok",
        "ok",
    ),
    "copies under other UIDs": (
        lambda files: make.second(files, files[0].parent / "more"),
        ["uniform", "identical copies"],
        "ok",
        "ok",
    ),
    "one pixel differs": (
        lambda files: make.second(files[3:5], files[0].parent / "more", values=1),
        ["uniform", "duplicate positions"],
        "refused",
        "ok",
    ),
    "copies with another rescale": (
        lambda files: make.second(files[:2], files[0].parent / "more", RescaleIntercept=-1000),
        ["uniform", "duplicate positions"],
        "refused",
        "ok",
    ),
    "no rescale": (
        lambda files: make.edit_all(
            files, RescaleSlope=None, RescaleIntercept=None, RescaleType=None
        ),
        ["uniform", "no rescale"],
        "refused",
        "ok",
    ),
    "no rescale, but said to be HU": (
        lambda files: make.edit_all(
            files, RescaleSlope=None, RescaleIntercept=None, RescaleType="HU"
        ),
        ["uniform", "no rescale"],
        "ok",
        "ok",
    ),
    "an unspecified unit": (
        lambda files: make.edit_all(files, RescaleType="US"),
        ["uniform"],
        "ok",
        "ok",
    ),
    "a rescale of zero": (
        lambda files: make.edit_all(files, RescaleSlope=0),
        ["no rescale"],
        "refused",
        "refused",
    ),
    "another unit": (
        lambda files: make.edit_all(files, RescaleType="MGML"),
        ["not in hu"],
        "refused",
        "refused",
    ),
    "values that cannot be air": (
        lambda files: make.edit_all(files, RescaleIntercept=32768),
        ["not in hu"],
        "refused",
        "refused",
    ),
    "unsigned without rescale": (
        lambda files: bare_unsigned(files[0].parent),
        ["no rescale", "not in hu"],
        "refused",
        "refused",
    ),
    "bits that do not fit together": (
        lambda files: make.edit_all(files, BitsStored=12, HighBit=15),
        ["not in hu"],
        "refused",
        "refused",
    ),
    "inverted": (
        lambda files: make.edit_all(files, PhotometricInterpretation="MONOCHROME1"),
        ["not in hu"],
        "refused",
        "refused",
    ),
    "voxels of nearly no volume": (
        lambda files: shrink(files),
        ["uniform", "no geometry"],
        "refused",
        "refused",
    ),
    "one slice": (
        lambda files: [file.unlink() for file in files[1:]],
        ["single slice"],
        "refused",
        "refused",
    ),
    "no position": (
        lambda files: make.edit(files[2], ImagePositionPatient=None),
        ["no geometry"],
        "refused",
        "refused",
    ),
    "too long": (
        lambda files: [
            make.move(files[1], by_lps_mm=(0, 0, -1.98)),
            make.move(files[-1], by_lps_mm=(0, 0, 100)),
        ],
        ["uneven", "too large"],
        "refused",
        "refused",
    ),
    "derived": (
        lambda files: make.edit_all(files, ImageType=["DERIVED", "SECONDARY", "MPR"]),
        ["uniform", "derived"],
        "ok",
        "ok",
    ),
    "truncated": (
        lambda files: make.truncate(files[5], lose_bytes=50),
        ["truncated"],
        "failed",
        "failed",
    ),
    "pixels that end before their file does": (
        lambda files: shorten_pixels(files[5]),
        ["truncated"],
        "failed",
        "failed",
    ),
    "pixels of two images in one": (
        lambda files: double_pixels(files[5]),
        ["damaged"],
        "failed",
        "failed",
    ),
    "no pixels": (
        lambda files: make.edit_all(files, PixelData=None),
        ["truncated"],
        "failed",
        "failed",
    ),
    "no rows": (lambda files: make.edit(files[1], Rows=None), ["damaged"], "failed", "failed"),
    "a video": (lambda files: mpeg(files[0]), ["unsupported transfer syntax"], "failed", "failed"),
    "encrypted positions": (
        lambda files: [encrypt_attributes(file) for file in files],
        ["encrypted"],
        "failed",
        "failed",
    ),
}


def shorten_pixels(path) -> None:
    """Ten rows fewer, and something else of the same size behind them."""
    import pydicom

    dataset = pydicom.dcmread(path)
    lost = 20 * dataset.Columns
    dataset.PixelData = dataset.PixelData[:-lost]
    dataset.DataSetTrailingPadding = b"\0" * lost
    dataset.save_as(path)


def double_pixels(path) -> None:
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.PixelData *= 2
    dataset.save_as(path)


def told(folder, *, strict: bool) -> Series:
    (entry,) = index(folder, strict=strict)
    return entry


@pytest.mark.parametrize("case", SERIES)
def test_a_series_gets_exactly_these_conditions_and_verdicts(case, tmp_path):
    damage, conditions, strict, lenient = SERIES[case]
    damage(make.series(tmp_path))
    entry = told(tmp_path, strict=False)
    assert (entry.kind, list(entry.conditions), entry.verdict) == ("ct", conditions, lenient)
    if lenient == "ok":
        assert read_series(entry).voxels.shape == entry.shape_zyx
    entry = told(tmp_path, strict=True)
    assert (entry.kind, entry.verdict) == ("ct", strict)
    assert set(entry.conditions) <= set(conditions)
    assert set(entry.conditions) - {"uniform"} or strict == "ok"
    if strict != "ok":
        assert entry.geometry is None


MIXED = {
    "mixed shapes": {"Rows": 6, "PixelData": b"\0" * 2 * 6 * 14},
    "mixed spacings": {"PixelSpacing": [0.9, 0.9]},
    "mixed orientations": {"ImageOrientationPatient": [0.8, 0.6, 0, -0.6, 0.8, 0]},
}


@pytest.mark.parametrize("condition", MIXED)
def test_mixed_slices_are_refused_by_strict_and_volumes_of_their_own_by_lenient(
    condition, tmp_path
):
    files = make.series(tmp_path)
    make.edit_all(files[5:], **MIXED[condition])
    entry = told(tmp_path, strict=True)
    assert (entry.verdict, entry.conditions) == ("refused", (condition,))
    entries = index(tmp_path, strict=False)
    assert [(e.verdict, e.conditions) for e in entries] == [("ok", ("uniform", condition))] * 2
    assert [e.shape_zyx[0] for e in entries] == [5, 4]


NO_CT = {
    "localizer": ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "dose report": (
        "dose report",
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR", "PixelData": None},
    ),
    "capture": ("secondary capture", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
    "MR": ("other modality", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}),
    "PET": ("other modality", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT"}),
    "structure set": (
        "other modality",
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3", "Modality": "RTSTRUCT"},
    ),
    "segmentation": (
        "label map",
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"},
    ),
    "labels in CT storage": ("label map", {"ImageType": ["DERIVED", "PRIMARY", "SEGMENTATION"]}),
    "MIP": ("derived", {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "MIP"]}),
    "MinIP by a vendor's word": ("derived", {"ImageType": ["DERIVED", "SECONDARY", "CSA MINIP"]}),
    "rendered": ("derived", {"ImageType": ["DERIVED", "SECONDARY", "VRT"]}),
    "curved": ("derived", {"ImageType": ["DERIVED", "SECONDARY", "CURVED_MPR"]}),
    "perfusion map": ("derived", {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CBF"]}),
}


@pytest.mark.parametrize("case", NO_CT)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_ct_volume_is_skipped_with_its_condition(case, strict, tmp_path):
    condition, attributes = NO_CT[case]
    make.edit_all(make.series(tmp_path), **attributes)
    entry = told(tmp_path, strict=strict)
    assert (entry.verdict, entry.conditions) == ("skipped", (condition,))
    assert entry.reason


SLICES = {
    "an average of slices": ["DERIVED", "PRIMARY", "AXIAL", "AVERAGE"],
    "a reformat": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"],
    "a lossy copy": ["DERIVED", "SECONDARY", "AXIAL"],
    "the source of a perfusion map": ["ORIGINAL", "PRIMARY", "AXIAL", "PERFUSION"],
}


@pytest.mark.parametrize("case", SLICES)
def test_slices_in_hu_that_say_more_of_themselves_are_ct(case, tmp_path):
    make.edit_all(make.series(tmp_path), ImageType=SLICES[case])
    entry = told(tmp_path, strict=True)
    derived = ("derived",) if SLICES[case][0] == "DERIVED" else ()
    assert (entry.kind, entry.verdict) == ("ct", "ok")
    assert entry.conditions == ("uniform", *derived)


FILES = {
    "scan.dcm": (b"hello", "not dicom"),
    "empty.dcm": (b"", "truncated"),
    "broken.dcm": (bytes(128) + b"DICM" + b"\xff" * 300, "damaged"),
    "scan.dcm.p7m": (
        bytes.fromhex("3080 0609 2a864886f70d010703 a080 3080 020100") + bytes(300),
        "encrypted",
    ),
    "closed.dcm": (
        bytes.fromhex("3082 0a10 0609 2a864886f70d010703 a082 0a01") + bytes(300),
        "encrypted",
    ),
    "IM0001": (b"-----BEGIN CMS-----\nMIAGCSqGSIb3DQEHA6CAMIACAQ\n", "encrypted"),
    "scan.dcm.age": (b"age-encryption.org/v1\n-> X25519 abc\n", "encrypted"),
    "scan.enc": (b"Salted__" + bytes(range(64)), "encrypted"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_sound_dicom_is_failed_with_its_condition(name, tmp_path):
    content, condition = FILES[name]
    (tmp_path / name).write_bytes(content)
    entry = told(tmp_path, strict=True)
    assert (entry.kind, entry.verdict) == ("damaged", "failed")
    assert entry.conditions == (condition,)


def test_other_files_are_not_dicom_also_where_they_are_encrypted(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "letter.txt").write_bytes(b"age-encryption.org/v1\n-> X25519 abc\n")
    entry = told(tmp_path, strict=True)
    assert (entry.verdict, entry.conditions, entry.files) == ("skipped", ("not dicom",), 2)


def test_a_condition_that_is_none_cannot_be_written_down():
    with pytest.raises(ValueError, match="conditions \\['crooked'\\]: not known"):
        Series("a", "a", "ct", "ok", "a reason", conditions=("uniform", "crooked"))


def test_every_condition_is_met_in_these_tests():
    met = {condition for _, conditions, *_ in SERIES.values() for condition in conditions}
    met |= {condition for condition, _ in NO_CT.values()} | {*MIXED}
    met |= {condition for _, condition in FILES.values()}
    elsewhere = {"several acquisitions", "overlapping reconstructions", "enhanced multi-frame"}
    assert met | elsewhere == set(CONDITIONS)
