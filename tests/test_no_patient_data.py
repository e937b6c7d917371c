"""What a header says of a patient never gets out: not into a file, a log, or onto the terminal."""

import gzip
import io
import sqlite3
import zipfile
import zlib
from contextlib import closing
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest
import scans as make
from torch import nn

import fastmed
from fastmed import bundle, cli
from fastmed.findings import Box, Findings
from fastmed.inference import archive, run_model
from fastmed.spec import Detection, Label, Spec

NAME = "Musterfrau^Erika"
WORDS = ("MUSTERFRAU", "ERIKA", "19591224", "LINDENALLEE", "HEMOPTYSIS", "WALDKLINIK", "DRWUNDER")
SAID = {
    "PatientName": NAME,
    "PatientBirthDate": "19591224",
    "PatientBirthName": NAME,
    "PatientMotherBirthName": NAME,
    "PatientAddress": "Lindenallee 7",
    "PatientComments": "hemoptysis, calls herself Erika",
    "OtherPatientNames": NAME,
    "InstitutionName": "Waldklinik",
    "InstitutionAddress": "Lindenallee 9",
    "ReferringPhysicianName": "DrWunder",
    "PerformingPhysicianName": "DrWunder",
    "OperatorsName": "DrWunder",
    "StudyDescription": "hemoptysis of Musterfrau",
    "SeriesDescription": "Thorax Musterfrau",
    "ProtocolName": "Erika",
    "ImageComments": "hemoptysis",
    "AdditionalPatientHistory": "hemoptysis",
    "StationName": "WALDKLINIK1",
    "RequestingPhysician": "DrWunder",
    "BodyPartExamined": "ERIKA",
    "ConvolutionKernel": "ERIKA",
    "FilterType": "MUSTERFRAU",
    "DeviceSerialNumber": "LINDENALLEE",
}
SOUND = {
    "SpecificCharacterSet": "ISO_IR 100",
    "StudyDate": "20240101",
    "StudyTime": "101010",
    "ContentDate": "20240101",
    "SeriesNumber": 1,
    "AcquisitionNumber": 1,
    "NumberOfFrames": 1,
}
# Where damage, or a careless machine, puts them: each is a scan of its own.
DAMAGED = {
    "modality": {"Modality": "MUSTERFRAU"},
    "modality-of-no-class": {"Modality": "MUSTERFRAU", "SOPClassUID": "1.2.3"},
    "photometric": {"PhotometricInterpretation": "MUSTERFRAU"},
    "rescale-type": {"RescaleType": "ERIKA"},
    "image-type": {"ImageType": ["ORIGINAL", "PRIMARY", "MUSTERFRAU"]},
    "no-numbers": {"SeriesNumber": None, "AcquisitionNumber": None},
}
# As bytes, for pydicom would not write them.
RAW = {
    "class": ("SOPClassUID", b"1.2.MUSTERFRAU"),
    "series": ("SeriesInstanceUID", b"Musterfrau^Erika"),
    "study": ("StudyInstanceUID", b"Musterfrau^Erika"),
    "frame-of-reference": ("FrameOfReferenceUID", b"Musterfrau^Erika"),
    "spacing": ("PixelSpacing", b"MUSTERFRAU\\ERIKA"),
    "orientation": ("ImageOrientationPatient", b"MUSTERFRAU\\1\\0\\0\\1\\0 "),
    "position": ("ImagePositionPatient", b"ERIKA\\1\\2 "),
    "slope": ("RescaleSlope", b"MUSTERFRAU"),
    "intercept": ("RescaleIntercept", b"19591224^ERIKA"),
    "series-number": ("SeriesNumber", b"ERIKA "),
    "acquisition": ("AcquisitionNumber", b"MUSTERFRAU"),
    "frames": ("NumberOfFrames", b"MUSTERFRAU"),
    "character-set": ("SpecificCharacterSet", b"MUSTERFRAU"),
    "study-date": ("StudyDate", b"MUSTERFRAU"),
    "study-time": ("StudyTime", b"ERIKA "),
    "content-date": ("ContentDate", b"MUSTERFRAU"),
}
# Where a multi-frame file has texts for all frames, or for each.
FRAME_TEXTS = {
    "FrameContentSequence": {
        "StackID": "ERIKA",
        "FrameComments": "hemoptysis",
        "FrameLabel": "MUSTERFRAU",
    },
    "CTReconstructionSequence": {
        "ConvolutionKernel": "ERIKA",
        "ConvolutionKernelGroup": "MUSTERFRAU",
        "ReconstructionAlgorithm": "WALDKLINIK",
    },
    "CTAcquisitionTypeSequence": {"AcquisitionType": "MUSTERFRAU"},
    "FrameAnatomySequence": {"FrameLaterality": "ERIKA"},
    "CTImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", "MUSTERFRAU", "ERIKA"]},
    "PixelValueTransformationSequence": {"RescaleType": "HU"},
}
NODULES = Spec(
    name="nodules",
    task="detection",
    labels=(Label(1, "nodule", snomed_ct="27925004"),),
    spacing_mm_zyx=(1.0, 1.0, 1.0),
    window_hu=(-1000.0, 400.0),
    tile_zyx=(16, 16, 16),
    detection=Detection(strides=(4,), diameters_mm=((4.0,),)),
)


def _dicom(folder, seed, syntax=None, **changes):
    paths = make.series(folder, make.volume((4, 32, 32), seed=seed))
    make.edit_all(paths, **(SAID | SOUND | changes))
    for path in paths if syntax else ():
        make.transcode(path, syntax)
    return paths


def _set_raw(path, keyword: str, value: bytes) -> None:
    """Gives an element that is there other bytes, whatever its VR allows."""
    tag = pydicom.tag.Tag(keyword)
    mark = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
    mark += pydicom.datadict.dictionary_VR(tag).encode()
    data = path.read_bytes()
    at = data.index(mark)
    old = int.from_bytes(data[at + 6 : at + 8], "little")
    new = len(value).to_bytes(2, "little") + value
    path.write_bytes(data[: at + 6] + new + data[at + 8 + old :])


def _frames(path, seed: int, **texts) -> None:
    """An enhanced multi-frame CT with words in its functional groups; texts replace some."""
    make.enhanced(
        path, make.volume((4, 32, 32), seed=seed), **(SAID | SOUND | {"NumberOfFrames": 4})
    )
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for sequence, values in FRAME_TEXTS.items():
        values = values | {word: texts[word] for word in values if word in texts}
        frames = dataset.PerFrameFunctionalGroupsSequence
        for groups in frames if sequence == "FrameContentSequence" else [shared]:
            if sequence not in groups:
                setattr(groups, sequence, [pydicom.Dataset()])
            for word, value in values.items():
                setattr(getattr(groups, sequence)[0], word, value)
    dataset.save_as(path)


def _volumes(folder) -> None:
    """NIfTI, MetaImage and NRRD that carry the words, sound and damaged."""
    import SimpleITK as sitk

    hu = np.random.default_rng(0).integers(-1000, 400, (12, 14, 10)).astype(np.int16)
    image = nibabel.Nifti1Image(hu, np.diag([1.0, 1, 2, 1]))
    image.header["descrip"] = NAME.encode()
    image.header["db_name"], image.header["aux_file"] = b"Musterfrau", b"Waldklinik"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode()))
    nibabel.save(image, folder / "a.nii")
    damaged = bytearray((folder / "a.nii").read_bytes())
    damaged[344:348] = b"ERIK"
    (folder / "b.nii").write_bytes(damaged)
    for name in ("c.mha", "d.nrrd"):
        volume = sitk.GetImageFromArray(hu.T)
        for key in ("PatientName", "Comment", "0010|0010"):
            volume.SetMetaData(key, NAME)
        sitk.WriteImage(volume, folder / name)
        data = (folder / name).read_bytes()
        for mark in (b"MET_SHORT", b"type: short", b"int16"):
            data = data.replace(mark, b"MUSTERFRAU", 1)
        (folder / f"damaged-{name}").write_bytes(data)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """An archive whose headers hold the words in every place that can hold them."""
    folder = tmp_path_factory.mktemp("archive")
    _dicom(folder / "sound", 1)
    for seed, (name, changes) in enumerate(DAMAGED.items(), 2):
        _dicom(folder / name, seed, **changes)
    for seed, (name, (keyword, value)) in enumerate(RAW.items(), 40):
        paths = _dicom(folder / name, seed)
        for path in paths:
            _set_raw(path, keyword, value)
    for seed, name in enumerate(("instances", "missing"), 70):
        paths = _dicom(folder / name, seed)
        for k, path in enumerate(paths):
            _set_raw(path, "SOPInstanceUID", f"{NAME}.{k}".encode())
    paths[2].unlink()
    for path in _dicom(folder / "syntax", 80):
        data = path.read_bytes()
        path.write_bytes(data.replace(b"1.2.840.10008.1.2.1\0", b"MUSTERFRAU^ERIKA.1.2", 1))
    for path in _dicom(folder / "undecodable", 81, syntax="1.2.840.10008.1.2.4.90"):
        data = path.read_bytes()
        path.write_bytes(data.replace(b"\xff\x4f\xff\x51", NAME[:4].encode(), 1))
    (folder / "cut").mkdir()
    (folder / "cut" / "1.dcm").write_bytes((folder / "sound" / "0001.dcm").read_bytes()[:700])
    (folder / "enhanced").mkdir()
    _frames(folder / "enhanced" / "sound.dcm", 90)
    _frames(folder / "enhanced" / "rescale-type.dcm", 91, RescaleType="ERIKA")
    _frames(folder / "enhanced" / "frame-type.dcm", 92, FrameType=["MUSTERFRAU", "ERIKA"])
    _volumes(folder)
    return folder


def _found_in(volume) -> Findings:
    """A box on every scan, so that each writer of boxes has something to say."""
    uids = [at.sop_instance_uid for at in volume.slices] or [""] * len(volume.voxels)
    low = volume.geometry.to_world((2, 4.0, 4.0))
    box = Box("nodule", 0.5, (*low, *(low + 4)), 4.0, (2, 4), uids[2], (3.0, 4.0, 7.0, 8.0))
    return Findings(
        volume.name, volume.source, "nodules", volume.geometry, None, NODULES.labels,
        boxes=(box,), modality="ct", warnings=volume.warnings,
    )  # fmt: skip


def _contents(folder):
    """Every file below a folder with its bytes, what is compressed also unpacked."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        yield str(path.relative_to(folder)), data
        if path.suffix == ".gz":
            yield f"{path.name} unpacked", gzip.decompress(data)
        if path.suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as members:
                for name in members.namelist():
                    yield f"{path.name}: {name}", members.read(name)
        if path.name == "journal.sqlite":
            with closing(sqlite3.connect(path)) as database:
                for name, entry in database.execute("SELECT name, entry FROM units"):
                    yield f"{path.name}: entry of {name}", zlib.decompress(entry)


def _leaks(data: bytes) -> list[str]:
    upper = data.upper()
    spellings = {word: (word.encode(), word.encode("utf-16-le")) for word in WORDS}
    return [word for word, all_of in spellings.items() if any(one in upper for one in all_of)]


def _assert_silent(output, heard, logged: str) -> None:
    for name, data in _contents(output):
        assert not _leaks(name.encode() + data), name
    for line in (*heard.out.splitlines(), *heard.err.splitlines(), *logged.splitlines()):
        assert not _leaks(line.encode()), line


@pytest.mark.parametrize("strict", [True, False])
def test_a_segmentation_says_nothing_of_the_patient(
    said, strict, tiny_bundle, tmp_path, capfd, caplog
):
    result = fastmed.infer(
        said, tmp_path / "out", model=tiny_bundle, engine="torch", device="cpu", strict=strict,
        log=tmp_path / "run.jsonl",
    )  # fmt: skip
    heard = capfd.readouterr()
    assert sum(row.verdict == "done" for row in result.rows) >= 4
    assert sum(row.verdict in ("refused", "failed") for row in result.rows) >= 8
    log = (tmp_path / "run.jsonl").read_text()
    assert log.count('"scan done"') >= 4
    _assert_silent(result.output, heard, caplog.text + log)
    assert strict == (not list(result.output.rglob("labels_slices.npz")))
    for row in result.rows:
        assert not _leaks(repr(row).encode()), row.source


def test_a_detection_says_nothing_of_the_patient(said, tmp_path, monkeypatch, capfd, caplog):
    bundle.write(tmp_path / "bundle", NODULES, nn.Linear(1, 1))
    model = SimpleNamespace(
        engine=SimpleNamespace(name="none", device="cpu", precision="fp32"),
        engine_choice="no engine",
        spec=NODULES,
        bundle=bundle.read(tmp_path / "bundle"),
        batch=None,
    )

    class Model(SimpleNamespace):
        def prepare(self, volume, *, clock):
            return None, None

        def look(self, image, grid, **_):
            return None

        def decode(self, said, grid, volume, *, clock):
            return _found_in(volume)

    monkeypatch.setattr(run_model, "load", lambda *_, **__: Model(**vars(model)))
    result = fastmed.infer(
        said,
        tmp_path / "out",
        model=tmp_path / "bundle",
        write=archive.FORMATS,
        strict=False,
    )
    heard = capfd.readouterr()
    names = {name for name, _ in _contents(result.output)}
    assert {"marks.csv", "coco.json", "findings.csv"} <= names
    assert sum(name.endswith("findings.sr.dcm") for name in names) >= 3
    _assert_silent(result.output, heard, caplog.text)


@pytest.mark.parametrize("options", [[], ["--lenient"]])
def test_an_index_says_nothing_of_the_patient(said, options, tmp_path, capfd, caplog):
    cli.main(["index", str(said), "--json", str(tmp_path / "index.jsonl"), *options])
    heard = capfd.readouterr()
    assert "damaged" in heard.out
    lines = (tmp_path / "index.jsonl").read_text().splitlines()
    assert len(lines) > len(DAMAGED) + len(RAW)
    said_of_all = (heard.out, heard.err, caplog.text)
    for line in (*lines, *(line for text in said_of_all for line in text.splitlines())):
        assert not _leaks(line.encode()), line


def test_multi_frame_files_with_the_words_are_taken_as_any_other(said):
    found = {entry.source: entry for entry in fastmed.index(said / "enhanced")}
    assert found["sound.dcm"].verdict == "ok"
    assert found["rescale-type.dcm"].reason == "rescale-type.dcm: its RescaleType '?' is not HU"


def test_the_words_would_be_found(said, tmp_path):
    """The search itself finds them: plain, in UTF-16, and in what is compressed."""
    (tmp_path / "a").write_bytes(NAME.encode())
    (tmp_path / "b").write_bytes("Erika".encode("utf-16-le"))
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"19591224"))
    np.savez(tmp_path / "d.npz", **{"Waldklinik": np.zeros(1)})
    assert [bool(_leaks(data)) for _, data in _contents(tmp_path)].count(True) == 4
    assert _leaks((said / "sound" / "0001.dcm").read_bytes())


def test_a_program_keeps_its_own_warnings_of_pydicom(said, caplog):
    fastmed.index(said / "character-set")
    assert not caplog.text
    with pytest.warns(UserWarning, match="Unknown encoding"):
        str(pydicom.dcmread(said / "character-set" / "0001.dcm").PatientName)
    assert "Unknown encoding" in caplog.text
