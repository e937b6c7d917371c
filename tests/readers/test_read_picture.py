"""Grey images: read as stored, refused by name where they are not grey, and only when asked for."""

import numpy as np
import pytest
import scans as make
from PIL import Image

from fastmed.errors import SeriesError, UsageError
from fastmed.readers.index import index, read, read_series

RNG = np.random.default_rng(0)
GREY_8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY_16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
SPREAD = GREY_8.astype(np.int32) + 200


def the_entry(folder, **options):
    (entry,) = index(folder, modality="grey", **options)
    return entry


TAKEN = {
    "8-bit PNG": ("a.png", Image.fromarray(GREY_8), GREY_8),
    "16-bit PNG": ("a.png", Image.fromarray(GREY_16), GREY_16),
    "8-bit BMP": ("a.bmp", Image.fromarray(GREY_8), GREY_8),
    "8-bit TIFF": ("a.tif", Image.fromarray(GREY_8), GREY_8),
    "16-bit TIFF": ("a.tiff", Image.fromarray(GREY_16), GREY_16),
    "32-bit TIFF of 16-bit values": ("a.tif", Image.fromarray(SPREAD), SPREAD),
    "black and white": ("a.png", Image.fromarray(GREY_8 > 99), 255 * (GREY_8 > 99)),
    "colour of equal channels": ("a.png", Image.fromarray(np.stack([GREY_8] * 3, -1)), GREY_8),
    "opaque alpha": ("A.PNG", Image.fromarray(GREY_8).convert("LA"), GREY_8),
    "palette of greys": ("a.png", Image.fromarray(GREY_8).convert("RGB").quantize(256), GREY_8),
}


@pytest.mark.parametrize(("name", "image", "expected"), TAKEN.values(), ids=TAKEN)
def test_grey_values_come_as_they_are_stored(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    entry = the_entry(tmp_path)
    assert (entry.kind, entry.verdict, entry.name) == ("grey image", "ok", name)
    assert entry.reason == "grey image, 7 x 5 pixels"
    volume = read_series(entry)
    assert volume.voxels.dtype in (np.uint8, np.uint16)
    assert np.array_equal(volume.voxels, expected[None])
    assert volume.geometry.spacing_mm_zyx == (1, 1, 1)
    assert (volume.slope, volume.intercept, volume.source) == (1, 0, name)


def test_a_jpeg_is_taken_as_its_decoder_shows_it(tmp_path):
    Image.fromarray(GREY_8).save(tmp_path / "a.jpg", quality=100)
    (volume,) = read(tmp_path, modality="grey")
    assert np.abs(volume.voxels[0].astype(int) - GREY_8).max() <= 4


def save_two_pages(path):
    Image.fromarray(GREY_8).save(path, save_all=True, append_images=[Image.fromarray(GREY_8)])


COLOUR = np.stack([GREY_8, GREY_8, GREY_8[::-1]], -1)
CLEAR = Image.merge("LA", [Image.fromarray(GREY_8), Image.fromarray(GREY_8)])
REFUSED = {
    "colour": ("a.png", Image.fromarray(COLOUR).save, "a colour image: its channels differ"),
    "transparent": ("a.png", CLEAR.save, "transparent in part"),
    "float": ("a.tif", Image.fromarray(GREY_8 / np.float32(3)).save, "mode F: expected 8 or 16"),
    "below 0": ("a.tif", Image.fromarray(SPREAD - 999).save, "its values run from -"),
    "two pages": ("a.tif", save_two_pages, "it holds 2 images"),
}


@pytest.mark.parametrize(("name", "save", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_grey_is_refused_and_says_why(tmp_path, name, save, words):
    save(tmp_path / name)
    entry = the_entry(tmp_path)
    assert (entry.kind, entry.verdict, entry.source) == ("grey image", "refused", name)
    assert words in entry.reason
    with pytest.raises(SeriesError, match=f"{name}: "):
        read(tmp_path, modality="grey")


def test_a_damaged_picture_is_named_by_the_index_or_when_it_is_read(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n" + b"x" * 50)
    (tmp_path / "empty.png").write_bytes(b"")
    noise = Image.fromarray(RNG.integers(0, 256, (300, 300), dtype=np.uint8))
    noise.save(tmp_path / "short.png")
    make.truncate(tmp_path / "short.png", lose_bytes=9000)
    bad, empty, short = index(tmp_path, modality="grey")
    assert (bad.verdict, empty.verdict) == ("failed", "failed")
    assert "cannot be read as a picture" in bad.reason
    assert str(tmp_path) not in bad.reason
    with pytest.raises(SeriesError, match=r"^short.png: it is damaged"):
        read_series(short)


def test_a_picture_beside_ct_is_no_scan_and_ct_beside_pictures_no_picture(tmp_path):
    Image.fromarray(GREY_8).save(tmp_path / "a.png")
    make.series(tmp_path / "ct")
    as_ct = {entry.source: entry.kind for entry in index(tmp_path)}
    assert as_ct == {"ct": "ct", "a.png": "not an image"}
    entries = index(tmp_path, modality="grey")
    assert [(e.source, e.kind) for e in entries] == [
        ("a.png", "grey image"), ("other files", "not an image"),
    ]  # fmt: skip
    assert "files that are no grey image" in entries[1].reason


def test_an_unknown_modality_is_a_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="modality 'mr': expected 'ct' or 'grey'"):
        index(tmp_path, modality="mr")


def test_the_command_lists_pictures_when_asked_for(tmp_path, capsys):
    from fastmed.cli import main

    Image.fromarray(GREY_8).save(tmp_path / "a.png")
    assert main(["index", str(tmp_path), "--modality", "grey"]) == 0
    assert "grey image, 7 x 5 pixels" in capsys.readouterr().out
    assert main(["index", str(tmp_path), "--modality", "mr"]) == 2
