"""Evaluate, detection: boxes by findings or tables, paired by path, each flaw with its line."""

import json

import pytest

import fastmed
from fastmed.cli import main
from fastmed.errors import FastmedError, UsageError

A, B = [0, 0, 0, 2, 2, 2], [10, 10, 10, 14, 14, 14]
A_HALF, FAR = [0, 0, 0, 2, 2, 1], [50, 50, 50, 51, 51, 51]
TRUTH = {"x/a.nii.gz": [("nodule", A)], "x/b.nii.gz": [("nodule", B), ("nodule", FAR)], "c.mhd": []}
FOUND = {
    "x/a.nii.gz": [("nodule", 0.9, A_HALF), ("nodule", 0.6, FAR)],
    "x/b.nii.gz": [("nodule", 0.8, A), ("nodule", 0.7, B)],
    "c.mhd": [],
}
CORNERS = "x1,y1,z1,x2,y2,z2"


def truth_csv(path, truth=None):
    rows = [f"path,patient,label,{CORNERS}"]
    for scan, boxes in (TRUTH if truth is None else truth).items():
        rows += [f"{scan},p,{label},{','.join(map(str, box))}" for label, box in boxes]
        rows += [] if boxes else [f"{scan},p,{',' * 6}"]
    path.write_text("\n".join(rows) + "\n")
    return path


def infer_results(folder, found=None):
    for scan, boxes in (FOUND if found is None else found).items():
        one = folder / "series" / scan.replace("/", "__")
        one.mkdir(parents=True)
        listed = [
            {"label": label, "score": score, "box_lps_mm": box} for label, score, box in boxes
        ]
        content = {"source": scan, "masks": [], "scores": [], "boxes": listed}
        (one / "findings.json").write_text(json.dumps(content))
    return folder


def boxes_csv(path, found=None):
    rows = [f"path,label,score,{CORNERS}"]
    for scan, boxes in (FOUND if found is None else found).items():
        rows += [f"{scan},{name},{s},{','.join(map(str, box))}" for name, s, box in boxes]
    path.write_text("\n".join(rows) + "\n")
    return path


def findings_csv(folder):
    folder.mkdir()
    corners = ",".join(f"{name}_lps_mm" for name in CORNERS.split(","))
    rows = [f"series,source,kind,label,score,{corners}"]
    for scan, boxes in FOUND.items():
        rows += [f"{scan},{scan},box,{name},{s},{','.join(map(str, b))}" for name, s, b in boxes]
    (folder / "findings.csv").write_text("\n".join([*rows, "x,y,mask,lung,,,,,,,"]) + "\n")
    return folder


def evaluate(predictions, truth, **arguments):
    return fastmed.evaluate(predictions, truth, task="detection", quiet=True, **arguments)


MADE = {
    "findings.json": (lambda p: infer_results(p / "out"), 0),
    "a table": (lambda p: boxes_csv(p / "found.csv"), 1),
    "findings.csv": (lambda p: findings_csv(p / "out"), 1),
}


@pytest.mark.parametrize(("made", "assumed"), MADE.values(), ids=MADE.keys())
def test_a_literal_case(made, assumed, tmp_path):
    found = evaluate(made(tmp_path), truth_csv(tmp_path / "boxes.csv"))
    assert (found.exit_status, found.problems) == (0, ())
    scores = found.scores
    assert [scores[name] for name in ("scans", "findings", "predictions")] == [3, 3, 4]
    assert scores["mean_iou"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores["ap"] == {"0.1": pytest.approx(5 / 9), "0.5": pytest.approx(5 / 9)}
    assert scores["labels"]["nodule"]["ap"]["0.5"] == scores["map"] == pytest.approx(5 / 9)
    assert scores["sensitivities"] == pytest.approx([1 / 3, 1 / 3, *[2 / 3] * 5])
    assert scores["cpm"] == pytest.approx(4 / 7)
    assert all(low <= high for low, high in scores["band"])
    assert scores["assumed"] == {"without_findings": 0, "without_predictions": assumed}


def test_luna16_s_annotations_are_cubes_and_scans_that_they_lack_have_no_nodule(tmp_path):
    rows = ["seriesuid\tcoordX\tcoordY\tcoordZ\tdiameter_mm", "a\t1\t1\t1\t2", "b\t12\t12\t12\t4"]
    (tmp_path / "annotations.csv").write_text("\n".join(rows))
    scores = evaluate(infer_results(tmp_path / "out"), tmp_path).scores
    assert [scores[name] for name in ("scans", "findings")] == [3, 2]
    assert scores["assumed"]["without_findings"] == 1
    assert scores["mean_iou"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_label_that_stands_alone_on_either_side_is_the_same(tmp_path):
    truth = {scan: [("1", box) for _, box in boxes] for scan, boxes in TRUTH.items()}
    scores = evaluate(infer_results(tmp_path / "out"), truth_csv(tmp_path / "t.csv", truth)).scores
    assert scores["map"] == pytest.approx(5 / 9)
    assert list(scores["labels"]) == ["1"]


def test_several_labels_are_scored_each_by_itself(tmp_path):
    truth = {"a": [("solid", A), ("glass", B)]}
    found = {"a": [("solid", 0.9, A), ("solid", 0.8, B)]}
    scores = evaluate(
        infer_results(tmp_path / "out", found), truth_csv(tmp_path / "t.csv", truth)
    ).scores
    assert scores["labels"]["solid"]["ap"]["0.5"] == 1
    assert scores["labels"]["glass"]["ap"]["0.5"] == 0
    assert scores["map"] == 0.5


def test_what_has_no_partner_is_named_on_either_side(tmp_path):
    found = {"x/a.nii.gz": FOUND["x/a.nii.gz"], "z.nii": []}
    result = evaluate(infer_results(tmp_path / "out", found), truth_csv(tmp_path / "t.csv"))
    assert result.exit_status == 1
    assert result.problems == ("no truth for z", "no prediction for x/b, c")
    assert result.scores["scans"] == 1


def test_series_of_one_source_are_told_apart_by_their_names(tmp_path):
    found = {"1.2.3": [("nodule", 0.5, A)], "1.2.4": [("nodule", 0.4, B)]}
    truth = {"ct/1.2.3": [("nodule", A)], "ct/1.2.4": [("nodule", B)]}
    folder = infer_results(tmp_path / "out", found)
    for file in folder.rglob("findings.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "ct"}))
    assert evaluate(folder, truth_csv(tmp_path / "t.csv", truth)).scores["map"] == 1


def with_truth(old, new):
    def made(path):
        table = truth_csv(path / "t.csv")
        text = table.read_text()
        assert old in text
        table.write_text(text.replace(old, new, 1))
        return infer_results(path / "out"), table

    return made


def with_findings(**changes):
    def made(path):
        infer_results(path / "out")
        file = path / "out" / "series" / "x__b.nii.gz" / "findings.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return path / "out", truth_csv(path / "t.csv")

    return made


BOX = {"label": "nodule", "score": 0.5, "box_lps_mm": A}
BAD = {
    "inverted": (
        with_truth("0,0,0,2,2,2", "0,0,3,2,2,2"), "t.csv, line 2: z1 3 is not below z2 2",
    ),
    "a word": (with_truth("10,10,10", "10,ten,10"), "t.csv, line 3: y1 'ten': expected a finite"),
    "a gap": (with_truth("10,10,10", "10,,10"), "t.csv, line 3: y1 ''"),
    "no path": (with_truth("c.mhd", ""), "t.csv, line 5: path is empty"),
    "a column": (with_truth("z2", "depth"), "t.csv: expected a column z2, got"),
    "no findings": (
        lambda p: (infer_results(p / "out"), truth_csv(p / "t.csv", {s: [] for s in TRUTH})),
        "t.csv: the scans that have predictions have no finding",
    ),
    "five corners": (
        with_findings(boxes=[BOX | {"box_lps_mm": A[1:]}]), "x__b.nii.gz/findings.json: not read",
    ),
    "null": (with_findings(boxes=[BOX | {"score": None}]), "x__b.nii.gz/findings.json: not read"),
    "a list": (
        with_findings(boxes=3), "x__b.nii.gz/findings.json: not readable",
    ),
    "other labels": (
        lambda p: (
            infer_results(p / "out", {"c": [("lung", 0.5, A), ("lobe", 0.4, B)]}),
            truth_csv(p / "t.csv", {"c": [("nodule", A)]}),
        ),
        "its labels are lobe, lung, those of",
    ),
    "another task": (
        lambda p: (
            infer_results(p / "out", {"c": []}), truth_csv(p / "t.csv"),
            (p / "out/series/c/findings.json").write_text(
                '{"source": "c", "boxes": [], "masks": [{"label": "liver"}]}'
            ),
        )[:2],
        "it holds no boxes; was the model a detection?",
    ),
    "nothing in common": (
        lambda p: (infer_results(p / "out"), truth_csv(p / "t.csv", {"q": [("nodule", A)]})),
        "no prediction has the path",
    ),
    "no results": (
        lambda p: (p, truth_csv(p / "t.csv")), "holds neither series/*/findings.json nor",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_scored_is_named(made, words, tmp_path):
    with pytest.raises(FastmedError) as raised:
        evaluate(*made(tmp_path))
    assert words in str(raised.value)


def test_absent_paths_are_a_wrong_usage(tmp_path):
    infer_results(tmp_path / "out")
    with pytest.raises(UsageError, match="--predictions"):
        evaluate(tmp_path / "no", truth_csv(tmp_path / "t.csv"))
    for truth in (tmp_path / "no", tmp_path / "out"):
        with pytest.raises(UsageError, match="--truth"):
            evaluate(tmp_path / "out", truth)


def test_the_command_prints_a_table_and_draws_the_curve(tmp_path, capsys):
    words = ["evaluate", "--task", "detection", "--froc", str(tmp_path / "froc.png")]
    words += ["--truth", str(truth_csv(tmp_path / "boxes.csv"))]
    words += ["--predictions", str(boxes_csv(tmp_path / "found.csv"))]
    assert main([*words, "--json", str(tmp_path / "s.json")]) == 0
    out, err = capsys.readouterr()
    assert "AP at IoU 0.5" in out
    assert "0.5556" in out
    assert "Scans in one table alone, which count as without predictions: 1." in err
    assert json.loads((tmp_path / "s.json").read_text())["task"] == "detection"
    assert (tmp_path / "froc.png").stat().st_size > 10_000
