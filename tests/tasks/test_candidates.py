"""Candidates: scores are the softmax, whatever the number of classes."""

from dataclasses import replace

import pytest
import torch

from fastmed.spec import Detection, Label, Spec
from fastmed.tasks.candidates import _most_likely as most_likely
from fastmed.tasks.candidates import candidates

SPEC = Spec(
    name="slices",
    task="detection",
    labels=(Label(1, "a"),),
    spacing_mm_zyx=None,
    size_zyx=(1, 300, 300),
    dimensions=2,
    window_hu=(0.0, 1.0),
    detection=Detection(iou_threshold=1.0, max_boxes=1000),
)


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_scores_are_the_softmax_of_the_logits_by_label(labels):
    spec = replace(SPEC, labels=tuple(Label(k + 1, f"l{k}") for k in range(labels)))
    raw = torch.zeros(2, 8732, 4 + labels + 1)
    raw[..., 4] = 20.0
    logits = torch.randn(2, 30, labels + 1, generator=torch.Generator().manual_seed(labels))
    raw[:, 300:330, 4:] = logits
    found = candidates(raw, spec, (2, 300, 300))
    expected = logits.softmax(-1)[..., 1:]
    for image in range(2):
        for label in range(1, labels + 1):
            scores = found.scores[image][found.labels[image] == label]
            of_label = expected[image, :, label - 1]
            of_label = of_label[of_label >= 0.05].sort(descending=True).values
            torch.testing.assert_close(scores[scores >= 0], of_label)
    assert bool(found.finite)


@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.9, 0.999])
def test_the_most_likely_are_those_that_ranking_all_gives_down_to_the_threshold(threshold):
    odds = torch.randn(3, 2, 5000, generator=torch.Generator().manual_seed(1)) * 2
    odds[1, 0] = -9.0
    best, places = most_likely(odds, threshold)
    expected, _ = odds.topk(400, dim=-1)
    counts = expected.sigmoid() >= threshold
    ranked = best.sort(dim=-1, descending=True)
    torch.testing.assert_close(ranked.values[counts], expected[counts], rtol=0, atol=0)
    held = odds.gather(-1, places)  # of equal odds either place will do
    assert torch.equal(held.gather(-1, ranked.indices)[counts], expected[counts])
    for row, of_row in zip(places.flatten(0, 1), best.flatten(0, 1), strict=True):
        used = row[of_row > -torch.inf]
        assert len(used.unique()) == len(used)
    assert (ranked.values[~counts].sigmoid() < threshold).all()
