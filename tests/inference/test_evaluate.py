"""Evaluate, segmentation: world space, and nothing scored that is not what it seems."""

import json
import math

import nibabel
import numpy as np
import pytest
from evaluations import GRID, PREDICTION, SHAPE, TRUTH, evaluate, infer_result, one_pair, write
from PIL import Image

import fastmed
from fastmed.cli import main
from fastmed.errors import FastmedError, UsageError
from fastmed.geometry import Geometry
from fastmed.inference.label_codes import parse_labels


@pytest.fixture
def files(tmp_path):
    return one_pair(tmp_path)


def test_a_literal_case(files):
    found = evaluate(*files, tolerance_mm=1.0)
    assert (found.exit_status, found.problems) == (0, ())
    case = found.scores["per_case"]["a"]
    assert case["labels"]["label"] == {
        "dice": pytest.approx(2 / 3),
        "iou": pytest.approx(1 / 2),
        "volume_ml": pytest.approx(96 * 8 / 1000),
        "truth_volume_ml": pytest.approx(96 * 8 / 1000),
        "volume_error_ml": 0,
        "volume_error_percent": 0,
        "hausdorff_95_mm": 2,
        "surface_dice": pytest.approx(0.75),  # 5 of 6 voxels in 12 of 16 rows, less the inside
    }
    assert case["mean_iou"] == pytest.approx(1 / 2)
    assert case["voxel_accuracy"] == pytest.approx(1 - 64 / 960)
    assert (case["covered"], case["warnings"]) == (1, [])
    mean = found.scores["mean"]
    assert (mean["cases"], mean["labels"]["label"]["cases"]) == (1, 1)
    assert mean["labels"]["label"]["dice"] == case["labels"]["label"]["dice"]


def test_the_tolerance_is_that_of_the_surface_dice(files):
    at = {mm: evaluate(*files, tolerance_mm=mm).scores for mm in (0.0, 1.0, 2.0)}
    shares = [s["per_case"]["a"]["labels"]["label"]["surface_dice"] for s in at.values()]
    assert shares[0] < shares[1] < shares[2] == 1
    assert at[1.0]["tolerance_mm"] == 1


def permuted():
    """The truth stored with axes in another order and flipped."""
    labels = np.ascontiguousarray(TRUTH.transpose(2, 0, 1)[::-1, :, ::-1])
    z, y, x = GRID.steps_lps_mm
    origin = GRID.to_world((0, SHAPE[1] - 1, SHAPE[2] - 1))
    return labels, Geometry.from_axes(labels.shape, origin, [-x, z, -y])


def finer():
    """The truth with each voxel cut into 2 x 2 x 2."""
    labels = TRUTH.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    origin = GRID.to_world((-0.25, -0.25, -0.25))
    return labels, Geometry.from_axes(labels.shape, origin, GRID.steps_lps_mm / 2)


def larger():
    """The truth with 3 slices more on either side."""
    labels = np.pad(TRUTH, ((3, 3), (0, 0), (0, 0)))
    return labels, GRID.slab(-3, labels.shape[0])


@pytest.mark.parametrize("stored", [permuted, finer], ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", ["truth", "prediction"])
def test_the_same_mask_on_another_grid_is_the_same_mask(stored, other, tmp_path):
    here, there = ("p", "t") if other == "truth" else ("t", "p")
    write(tmp_path / here / "a.nii.gz", TRUTH)
    write(tmp_path / there / "a.nii.gz", *stored())
    case = evaluate(tmp_path / "p", tmp_path / "t").scores["per_case"]["a"]
    scores = case["labels"]["label"]
    assert (scores["dice"], scores["hausdorff_95_mm"], case["covered"]) == (1, 0, 1)
    assert scores["volume_error_ml"] == pytest.approx(0, abs=1e-6)


def test_one_tilted_grid_on_both_sides(tmp_path):
    lean = np.radians(20)
    steps = [(0, 0, 4), (0, 2 * np.cos(lean), -2 * np.sin(lean)), (1, 0, 0)]
    tilted = Geometry.from_axes(SHAPE, (0, 0, 0), steps)
    write(tmp_path / "p.nii.gz", PREDICTION, tilted)
    write(tmp_path / "t.nii.gz", TRUTH, tilted)
    scores = evaluate(tmp_path / "p.nii.gz", tmp_path / "t.nii.gz").scores
    label = scores["per_case"]["p"]["labels"]["label"]
    assert label["dice"] == pytest.approx(2 / 3)
    assert label["hausdorff_95_mm"] == pytest.approx(2)
    assert label["volume_ml"] == pytest.approx(96 * 8 * np.cos(lean) / 1000)


def test_truth_beyond_the_predictions_grid_was_missed(files):
    predictions, _ = files
    write(predictions / "a.nii.gz", TRUTH[4:], GRID.slab(4, 4))
    case = evaluate(*files).scores["per_case"]["a"]
    assert case["labels"]["label"]["dice"] == pytest.approx(2 / 3)  # 2 of 4 slices
    assert case["covered"] == 0.5
    assert case["warnings"] == ["the prediction's grid covers 50 % of the truth's"]


def test_a_larger_truth_finds_nothing_beyond_the_prediction(files):
    write(files[1] / "a.nii.gz", *larger())
    case = evaluate(*files).scores["per_case"]["a"]
    assert case["labels"]["label"]["dice"] == pytest.approx(2 / 3)
    assert case["covered"] == pytest.approx(8 / 14)


def test_volumes_are_taken_on_each_ones_own_grid(tmp_path):
    thin = np.zeros((1, 1, 40), np.uint8)
    thin[..., ::4] = 1  # 10 of 40; nearest sampling at every 4th voxel would see 10 of 10 or none
    coarse = Geometry.from_spacing((1, 1, 10), (1, 1, 4.0))
    write(tmp_path / "p.nii.gz", thin, Geometry.from_spacing(thin.shape, (1, 1, 1)))
    write(tmp_path / "t.nii.gz", np.ones((1, 1, 10), np.uint8), coarse)
    label = evaluate(tmp_path / "p.nii.gz", tmp_path / "t.nii.gz").scores["mean"]["labels"]["label"]
    assert (label["volume_ml"], label["truth_volume_ml"]) == (0.01, 0.04)
    assert label["volume_error_ml"] == pytest.approx(-0.03)
    assert label["volume_error_percent"] == pytest.approx(-75)
    assert label["volume_error_ml_absolute"] == pytest.approx(0.03)


def test_no_common_voxel_is_an_error_and_no_score(files):
    far = Geometry.from_spacing(SHAPE, (4.0, 2.0, 1.0), (500.0, 20.0, -30.0))
    write(files[0] / "b.nii.gz", TRUTH, far)
    write(files[1] / "b.nii.gz", TRUTH)
    found = evaluate(*files)
    assert list(found.scores["per_case"]) == ["a"]
    assert found.exit_status == 1
    (problem,) = found.problems
    assert "b.nii.gz: it lies at x 500..511" in problem
    assert "they have no voxel in common" in problem
    with pytest.raises(FastmedError, match="no voxel in common"):
        evaluate(files[0] / "b.nii.gz", files[1] / "b.nii.gz")


def test_for_a_model_of_one_label_everything_above_0_is_truth(tmp_path):
    infer_result(tmp_path / "out", "a.nii.gz", PREDICTION)
    write(tmp_path / "t" / "a.nii.gz", TRUTH * np.arange(1, 13, dtype=np.uint8))
    scores = evaluate(tmp_path / "out", tmp_path / "t").scores
    assert scores["mean"]["labels"]["liver"]["dice"] == pytest.approx(2 / 3)
    (warning,) = scores["per_case"]["a"]["warnings"]
    assert warning == (
        "the truth's values 3, 4, 5, 6, 7, 8 all count as liver; --labels liver=VALUE picks one"
    )


BOTH = PREDICTION.copy()
BOTH[0, 0, :4] = 2
STORED = TRUTH * np.uint8(5)
STORED[0, 0, :3], STORED[7, 7, 7] = 1, 9


@pytest.mark.parametrize(
    "labels",
    ["liver=5,spleen=1", {"liver": 5, "spleen": (1,)}, "spleen=1,liver=5"],
    ids=["text", "mapping", "another order"],
)
def test_named_truth_values_are_those_of_the_models_labels(labels, tmp_path):
    infer_result(tmp_path / "out", "a.nii.gz", BOTH, names=("liver", "spleen"))
    write(tmp_path / "t" / "a.nii.gz", STORED)
    scores = evaluate(tmp_path / "out", tmp_path / "t", labels=labels).scores["mean"]["labels"]
    assert scores["liver"]["dice"] == pytest.approx(2 / 3)
    assert scores["spleen"]["dice"] == pytest.approx(6 / 7)


def test_without_a_model_the_order_of_the_labels_counts(files):
    write(files[0] / "a.nii.gz", BOTH)
    write(files[1] / "a.nii.gz", STORED)
    scores = evaluate(*files, labels="liver=5,spleen=1").scores["mean"]["labels"]
    assert scores["spleen"]["dice"] == pytest.approx(6 / 7)


def test_several_values_may_be_one_label_and_one_of_a_models_labels_be_scored(tmp_path):
    infer_result(tmp_path / "out", "a.nii.gz", BOTH, names=("liver", "spleen"))
    write(tmp_path / "t" / "a.nii.gz", STORED)
    scores = evaluate(tmp_path / "out", tmp_path / "t", labels="liver=5+9").scores
    assert scores["labels"] == ["liver"]
    assert scores["mean"]["labels"]["liver"]["dice"] == pytest.approx(2 * 64 / (96 + 97))


def test_values_mean_the_same_on_both_sides_where_nothing_else_is_known(files):
    write(files[0] / "a.nii.gz", BOTH)
    both = TRUTH.copy()
    both[0, 0, :3] = 2
    write(files[1] / "a.nii.gz", both)
    scores = evaluate(*files).scores["mean"]["labels"]
    assert {name: round(s["dice"], 3) for name, s in scores.items()} == {
        "label 1": 0.667, "label 2": 0.857,
    }  # fmt: skip


def test_one_predicted_value_and_several_true_ones_have_to_be_named(files):
    write(files[1] / "a.nii.gz", STORED)
    with pytest.raises(UsageError, match=r"--labels: the predictions hold one .*\[1, 5, 9\]"):
        evaluate(*files)


@pytest.mark.parametrize("side", ["p", "t"])
def test_a_value_that_no_label_has_is_named_with_its_file(side, tmp_path):
    names = ("liver", "spleen")
    for case in "ab":
        spoiled = {s: np.where(BOTH == 2, 9, BOTH) if s == side and case == "b" else BOTH
                   for s in "pt"}  # fmt: skip
        infer_result(tmp_path / "p", f"{case}.nii.gz", BOTH, names=names)
        write(tmp_path / "p" / "series" / f"{case}.nii.gz" / "labels.nii.gz", spoiled["p"])
        write(tmp_path / "t" / f"{case}.nii.gz", spoiled["t"])
    found = evaluate(tmp_path / "p", tmp_path / "t")
    assert list(found.scores["per_case"]) == ["a"]
    (problem,) = found.problems
    assert f"/{side}/" in problem
    assert "b.nii.gz" in problem
    assert "it holds 9, expected the labels 1, 2" in problem


def damaged(path):
    path.write_bytes(b"nothing")


def not_a_number(path):
    voxels = TRUTH.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels.T, GRID.to_ras_xyz()), path)


def fractions(path):
    nibabel.save(nibabel.Nifti1Image((TRUTH * np.float32(0.3)).T, GRID.to_ras_xyz()), path)


def negative(path):
    nibabel.save(nibabel.Nifti1Image((TRUTH * np.int16(-1)).T, GRID.to_ras_xyz()), path)


@pytest.mark.parametrize("spoil", [damaged, not_a_number, fractions, negative])
@pytest.mark.parametrize("side", [0, 1], ids=["prediction", "truth"])
def test_a_bad_file_is_named_and_the_others_are_scored(spoil, side, files):
    for folder in files:
        write(folder / "b.nii.gz", TRUTH)
    spoil(files[side] / "b.nii.gz")
    found = evaluate(*files, labels="liver=1")
    assert list(found.scores["per_case"]) == ["a"]
    assert found.exit_status == 1
    assert found.problems[0].startswith(f"{files[side] / 'b.nii.gz'}: ")


def test_means_leave_out_cases_without_the_label_and_count_those_in_one_alone(files):
    nothing = np.zeros_like(TRUTH)
    for name, prediction, truth in (("b", nothing, TRUTH), ("c", nothing, nothing)):
        write(files[0] / f"{name}.nii.gz", prediction)
        write(files[1] / f"{name}.nii.gz", truth)
    scores = evaluate(*files).scores
    mean = scores["mean"]["labels"]["label"]
    assert scores["per_case"]["b"]["labels"]["label"]["dice"] == 0
    assert math.isinf(scores["per_case"]["b"]["labels"]["label"]["hausdorff_95_mm"])
    assert math.isnan(scores["per_case"]["c"]["labels"]["label"]["dice"])
    assert mean["dice"] == pytest.approx(1 / 3)
    assert mean["hausdorff_95_mm"] == 2
    assert (mean["cases"], mean["in_one_alone"], scores["mean"]["cases"]) == (2, 1, 3)


def test_black_and_white_images_are_scored_pixel_by_pixel(tmp_path):
    for folder, labels in (("out/series/a.png", PREDICTION[3]), ("t", TRUTH[3])):
        (tmp_path / folder).mkdir(parents=True)
        name = "a" if folder == "t" else "labels"
        Image.fromarray(labels * np.uint8(255)).save(tmp_path / folder / f"{name}.png")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "out/series/a.png/preview.png")
    scores = evaluate(tmp_path / "out", tmp_path / "t").scores
    assert scores["mean"]["labels"]["label"]["dice"] == pytest.approx(2 / 3)
    assert scores["mean"]["labels"]["label"]["hausdorff_95_mm"] == 2
    Image.fromarray(TRUTH[3][1:]).save(tmp_path / "t" / "a.png")
    with pytest.raises(FastmedError, match="only equal sizes can be compared"):
        evaluate(tmp_path / "out", tmp_path / "t")


def test_more_labels_than_a_byte_holds(files):
    predicted = np.arange(960, dtype=np.int16).reshape(SHAPE) // 3
    write(files[0] / "a.nii.gz", predicted)
    labels, geometry = predicted[::-1].copy(), GRID
    z, y, x = geometry.steps_lps_mm
    write(files[1] / "a.nii.gz", labels,
          Geometry.from_axes(SHAPE, geometry.to_world((7, 0, 0)), [-z, y, x]))  # fmt: skip
    scores = evaluate(*files).scores
    assert len(scores["labels"]) == 319
    assert all(s["dice"] == 1 for s in scores["mean"]["labels"].values())


PARSED = {
    "liver=5,spleen=1": {"liver": (5,), "spleen": (1,)},
    " left lung = 10+11 ": {"left lung": (10, 11)},
    "a=b=2": {"a=b": (2,)},
}


@pytest.mark.parametrize(("text", "wanted"), PARSED.items())
def test_labels_are_parsed(text, wanted):
    assert parse_labels(text) == wanted


@pytest.mark.parametrize("text", ["liver", "=5", "liver=", "liver=0", "a=1,a=2", "a=1,b=1", "a=x"])
def test_labels_that_say_nothing_are_a_wrong_usage(text):
    with pytest.raises(UsageError, match="--labels"):
        parse_labels(text)


WRONG = {
    "task": ({"task": "boxes"}, "--task boxes: expected one of segmentation, detection"),
    "tolerance": ({"tolerance_mm": -1.0}, "--tolerance -1"),
    "no number": ({"tolerance_mm": math.nan}, "--tolerance nan"),
    "labels": ({"task": "classification", "labels": "a=1"}, "--labels"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(options, words, files):
    with pytest.raises(UsageError, match=words):
        fastmed.evaluate(*files, **({"task": "segmentation"} | options))


def test_a_label_that_the_model_lacks_is_a_wrong_usage(tmp_path):
    infer_result(tmp_path / "out", "a.nii.gz", PREDICTION)
    write(tmp_path / "t" / "a.nii.gz", TRUTH)
    with pytest.raises(UsageError, match="--labels kidney: the model's are liver"):
        evaluate(tmp_path / "out", tmp_path / "t", labels="kidney=1")


def test_the_command_prints_a_table_and_writes_json(files, tmp_path, capsys):
    words = ["evaluate", "--task", "segmentation", "--json", str(tmp_path / "s" / "scores.json")]
    words += ["--predictions", str(files[0]), "--truth", str(files[1])]
    assert main([*words, "--tolerance", "0"]) == 0
    out, err = capsys.readouterr()
    assert "0.6667" in out
    assert err == ""
    write(files[0] / "a.nii.gz", TRUTH[4:], GRID.slab(4, 4))
    assert main(words) == 0
    assert capsys.readouterr().err == "a: the prediction's grid covers 50 % of the truth's\n"
    write(files[0] / "a.nii.gz", PREDICTION)
    assert main([*words, "--tolerance", "0"]) == 0
    capsys.readouterr()
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert scores["task"] == "segmentation"
    assert scores["tolerance_mm"] == 0
    assert scores["mean"]["labels"]["label"]["iou"] == 0.5

    write(files[1] / "b.nii.gz", TRUTH)
    assert main([*words, "--quiet", "--labels", "liver=1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"fastmed: {files[1] / 'b.nii.gz'}: no prediction is named b\n"
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert scores["labels"] == ["liver"]
    assert len(scores["problems"]) == 1


def test_the_command_says_where_a_path_is_absent(files, capsys):
    words = ["evaluate", "--task", "segmentation", "--truth", str(files[1])]
    assert main([*words, "--predictions", str(files[0] / "absent")]) == 2
    assert "absent: no such file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(words)
