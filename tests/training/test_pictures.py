"""Pictures show what they should, and no empty boxes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastmed.training import logbook, pictures
from fastmed.training.batches import Batch
from fastmed.training.logbook import Logbook, metrics_csv
from fastmed.training.pictures import (
    Panel,
    curves_png,
    drawable,
    panel_image,
    panels_png,
    sample_panels,
)

HISTORY = [
    {"epoch": 1, "learning_rate": 1e-3, "train_loss": 0.9, "val_loss": None, "val_dice": None},
    {"epoch": 2, "learning_rate": 5e-4, "train_loss": 0.5, "val_loss": 0.6, "val_dice": 0.7},
]


def test_curves_are_a_picture_that_changes_with_the_figures():
    first, both = curves_png(HISTORY[:1]), curves_png(HISTORY)
    assert Image.open(io.BytesIO(both)).size[0] > 300
    assert first != both
    assert curves_png(HISTORY) == both


def test_truth_is_an_outline_and_prediction_a_tint():
    image = np.full((9, 9), 0.5)
    truth = np.zeros((9, 9), int)
    truth[2:7, 2:7] = 1
    prediction = np.zeros((9, 9), int)
    prediction[3:9, 3:9] = 1
    picture = panel_image(Panel(image, truth, prediction, ""))
    assert (picture[2, 2:7] == 255).all()
    assert picture[0, 0].tolist() == [128, 128, 128]
    assert len(set(picture[8, 8].tolist())) > 1
    assert picture[4, 4].tolist() == picture[8, 8].tolist(), "inside the truth only the tint shows"


def test_captions_of_any_script_are_drawn_or_spelled_out():
    assert drawable("liver 1.5 ml, ä") == "liver 1.5 ml, ä"
    text = drawable("肝脏 liver")
    assert text.endswith("liver")
    fonts = pictures._cjk_fonts()
    assert text == ("肝脏 liver" if fonts else "U+809D U+810F  liver")
    panels = [Panel(np.zeros((4, 4)), None, None, "肝脏")] * 5
    assert Image.open(io.BytesIO(panels_png(panels))).size[1] > 400


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_any_number_of_panels_of_any_sizes_is_one_picture(count):
    sizes = [(1, 1), (7, 300), (300, 7), (33, 65)]
    panels = [Panel(np.zeros(sizes[n % 4]), None, None, str(n)) for n in range(count)]
    width, height = Image.open(io.BytesIO(panels_png(panels))).size
    assert (width, height) == (280 * min(count, 4), 310 * -(-count // 4))


def test_a_sample_sheet_shows_the_slice_with_the_most_truth():
    target = torch.zeros(2, 4, 6, 6, dtype=torch.uint8)
    target[0, 3, :2] = 1
    image = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(2, 1, 4, 6, 6) / 4
    first, second = sample_panels(Batch(image, target, ("a", "b")))
    assert (first.image == 0.75).all()
    assert first.truth.sum() == 12
    assert (second.image == 0.5).all(), "the middle one where there is none"
    (scan,) = sample_panels(Batch(image[:1], torch.tensor([1]), ("a",)))
    assert scan.truth is None
    assert scan.caption == "a: class 1"


@pytest.mark.filterwarnings("error:Glyph")
def test_no_picture_has_a_glyph_that_no_font_knows():
    panels_png([Panel(np.zeros((4, 4)), None, None, "肝脏 𓀀 ok")])


def test_metrics_csv_keeps_a_column_for_every_figure():
    lines = metrics_csv(HISTORY).splitlines()
    assert lines[0] == "epoch,learning_rate,train_loss,val_loss,val_dice"
    assert lines[1] == "1,0.001,0.9,,"
    assert lines[2] == "2,0.0005,0.5,0.6,0.7"


def test_tensorboard_holds_each_epoch_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    panel = Panel(np.zeros((4, 4)), None, None, "a")
    for first in (1, 2):  # the second start trains epoch 2 anew
        book = Logbook(tmp_path, first)
        for end in range(first, 3):
            book.record(HISTORY[:end], [panel])
        book.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [
        (1, pytest.approx(0.9)), (2, pytest.approx(0.5)),
    ]  # fmt: skip
    assert board.Tags()["images"] == ["sample/0"]
    assert [e.step for e in board.Scalars("learning_rate")] == [1, 2]


def test_pictures_of_quick_epochs_wait_for_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(logbook, "curves_png", lambda history: drawn.append(len(history)) or b"")
    book = Logbook(tmp_path, 1)
    for end in (1, 2):
        book.record(HISTORY[:end], [])
    assert drawn == [1]
    book.close()
    assert drawn == [1, 2]
    slow = Logbook(tmp_path, 1)
    monkeypatch.setattr(logbook, "_REDRAW_SECONDS", -1.0)
    for end in (1, 2):
        slow.record(HISTORY[:end], [])
    slow.close()
    assert drawn == [1, 2, 1, 2]
