"""fastmed doctor: what it says of the readers of DICOM and of the caches."""

from types import SimpleNamespace

import pytest

from fastmed.doctor import doctor
from fastmed.readers import dicom_codecs, dicom_native


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMED_CACHE", str(tmp_path))


def check_of(subject):
    (check,) = [check for check in doctor() if check.subject == subject]
    return check


@pytest.mark.parametrize(
    ("host", "finding", "advice"),
    [
        (SimpleNamespace(), "native, in threads", ""),
        (None, "pydicom alone, which is slower", "reinstall fastmed"),
    ],
)
def test_doctor_says_whether_the_native_reader_is_built(host, finding, advice, monkeypatch):
    monkeypatch.setattr(dicom_native, "_host", host)
    check = check_of("DICOM reader")
    assert check.finding == finding
    assert check.advice.startswith(advice)
    assert bool(check.advice) == bool(advice)


@pytest.mark.parametrize(
    ("there", "finding", "advice"),
    [
        (("4.90", "4.80", "4.57"), "decodes JPEG 2000 and HTJ2K, JPEG-LS, JPEG", ""),
        (("4.90",), "decodes JPEG 2000 and HTJ2K", "a build of imagecodecs with JPEG-LS, JPEG"),
        ((), "absent; what is compressed takes longer to read", "pip install imagecodecs"),
    ],
)
def test_doctor_says_what_imagecodecs_decodes(there, finding, advice, monkeypatch):
    codec = {f"1.2.840.10008.1.2.{end}": print for end in there}
    monkeypatch.setattr(dicom_codecs, "_codec", codec.get)
    check = check_of("DICOM imagecodecs")
    assert check.finding == finding
    assert check.advice.endswith(advice)
    assert bool(check.advice) == bool(advice)


def test_doctor_says_where_the_kept_index_lies(tmp_path):
    assert str(tmp_path) in check_of("cache index").finding
