"""What training batches say is added up exactly, for any number of classes."""

from types import SimpleNamespace

import pytest
import torch

from fastmed.training.batches import Batch
from fastmed.training.tally import Tally, likeliest


@pytest.mark.parametrize("classes", [1, 2, 3, 300])
def test_the_likeliest_class_is_torchs_argmax_with_ties_to_the_lowest(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(-3, 4, (2, classes, 5, 6), generator=generator).float()
    first = logits.argmax(1) if classes > 1 else logits[:, 0] > 0
    assert torch.equal(likeliest(logits).long(), first.long())


def test_more_classes_than_a_byte_holds_are_tallied_apart():
    """Class 257 is not class 1: as bytes they would be the same."""
    spec = SimpleNamespace(num_classes=300, task="segmentation")
    tally = Tally(spec, "cpu")
    target = torch.tensor([[257, 1]], dtype=torch.int16)
    logits = torch.nn.functional.one_hot(torch.tensor([[257, 257]]), 300).movedim(-1, 1).float()
    tally.add(torch.tensor(0.5), logits, Batch(torch.zeros(1, 1, 2), target, ("a",)))
    row = tally.row(SimpleNamespace(all_reduce=lambda value, reduce_op: value))
    assert row["train_accuracy"] == 0.5
    assert row["train_dice"] == pytest.approx((2 / 3 + 0) / 2)
