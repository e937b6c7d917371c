"""Headers that no scanner writes: no number breaks the judge, and no number of files its time."""

from dataclasses import replace

import numpy as np
import pytest
import scans as make

from fastmed.readers import dicom_copies
from fastmed.readers.dicom import series_of
from fastmed.readers.dicom_header import read_header
from fastmed.readers.index import index
from fastmed.readers.walk import walk

EXTREME = {
    "a pixel spacing beyond arithmetic": {"pixel_spacing": (1e-300, 1e-300)},
    "a position beyond any patient": {"position": (0.0, 0.0, 1e300)},
    "a position that is not a number": {"position": (0.0, float("nan"), 0.0)},
    "more bits than a pixel has": {"bits_stored": 65535},
    "an infinite slope": {"slope": float("inf")},
    "frames by the million": {"frames": 10**12},
}


@pytest.mark.parametrize("case", EXTREME)
@pytest.mark.parametrize("strict", [True, False])
def test_no_number_in_a_header_breaks_the_judge(case, strict, tmp_path):
    make.series(tmp_path)
    headers = [read_header(f.path, f.relative, f.file_bytes) for f in walk(tmp_path)]
    entries = series_of([replace(header, **EXTREME[case]) for header in headers], strict=strict)
    assert {entry.verdict for entry in entries} <= {"ok", "refused", "failed"}
    assert all(entry.reason for entry in entries)


@pytest.mark.parametrize("strict", [True, False])
def test_slices_that_all_lie_in_planes_of_their_own_are_refused_as_one(strict, tmp_path):
    (file, *_) = make.series(tmp_path)
    header = read_header(str(file), "0001.dcm", file.stat().st_size)
    turned = []
    for k, angle in enumerate(np.linspace(0, 2 * np.pi, 3000, endpoint=False)):
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        axes, uid = (cos, sin, 0.0, -sin, cos, 0.0), f"1.2.{k}"
        turned.append(replace(header, orientation=axes, sop_instance_uid=uid))
    (entry,) = series_of(turned, strict=strict)
    assert (entry.verdict, entry.conditions) == ("refused", ("mixed orientations",))
    assert "more than 256 different planes" in entry.reason
    assert entry.files == 1


def test_files_that_share_one_uid_are_each_read_once_to_tell_copies(tmp_path, monkeypatch):
    files = make.series(tmp_path)
    make.edit_all(files, SOPInstanceUID="1.2.3")
    (tmp_path / "copy").write_bytes(files[4].read_bytes())
    reads = []
    digest = dicom_copies._file_digest
    monkeypatch.setattr(
        dicom_copies, "_file_digest", lambda path: reads.append(path) or digest(path)
    )
    (entry,) = index(tmp_path, strict=True)
    assert (entry.verdict, entry.conditions) == ("ok", ("uniform", "identical copies"))
    assert len(reads) == len(set(reads)) == 10
