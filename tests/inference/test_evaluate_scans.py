"""Evaluate, classification: tables and findings, paired by path, each flaw named with its line."""

import json

import pytest

import fastmed
from fastmed.cli import main
from fastmed.errors import FastmedError, UsageError

TRUTH = {"x/a.nii.gz": 1, "x/b.nii.gz": 0, "x/c.nii.gz": 0, "y/d.nii.gz": 1, "y/e.nii.gz": 1}
POSITIVE = dict(zip(TRUTH, (0.9, 0.2, 0.7, 0.6, 0.4), strict=True))
NAMES = ("negative", "covid")


@pytest.fixture
def truth(tmp_path):
    return truth_csv(tmp_path / "labels.csv", TRUTH)


def truth_csv(path, labels, header="path,patient,label"):
    rows = [f"{scan},p{k},{label}" for k, (scan, label) in enumerate(labels.items())]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def predictions_csv(path, positive, header="path,target,p_negative,p_covid"):
    path.parent.mkdir(exist_ok=True)
    rows = [f"{scan},,{1 - p},{p}" for scan, p in positive.items()]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def infer_results(folder, positive, names=NAMES, strip=""):
    for scan, p in positive.items():
        source = scan.removeprefix(strip)
        one = folder / "series" / source.replace("/", "__")
        one.mkdir(parents=True)
        scores = [
            {"label": name, "probability": q} for name, q in zip(names, (1 - p, p), strict=True)
        ]
        (one / "findings.json").write_text(json.dumps({"source": source, "scores": scores}))
    return folder


def evaluate(predictions, truth):
    return fastmed.evaluate(predictions, truth, task="classification", quiet=True)


def by_table(tmp_path):
    return predictions_csv(tmp_path / "run" / "predictions.csv", POSITIVE)


def by_folder_with_table(tmp_path):
    return by_table(tmp_path).parent


def by_findings(tmp_path):
    return infer_results(tmp_path / "out", POSITIVE)


@pytest.mark.parametrize("made", [by_table, by_folder_with_table, by_findings])
def test_a_literal_case(made, truth, tmp_path):
    found = evaluate(made(tmp_path), truth)
    assert (found.exit_status, found.problems) == (0, ())
    scores = found.scores
    assert scores["classes"] == ["negative", "covid"]
    assert scores["scans"] == 5
    assert scores["confusion"].tolist() == [[1, 1], [1, 2]]
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(2 / 3)
    assert scores["auc"] == pytest.approx(4 / 6)
    assert scores["auc_band"][0] < scores["auc"] < scores["auc_band"][1]
    assert sum(one["scans"] for one in scores["calibration"]) == 5


def test_the_order_of_the_rows_does_not_matter(tmp_path, truth):
    backwards = dict(reversed(POSITIVE.items()))
    found = evaluate(predictions_csv(tmp_path / "p.csv", backwards), truth)
    assert found.scores["auc"] == pytest.approx(4 / 6)


def test_a_scan_is_found_by_the_end_of_its_path(tmp_path):
    whole = truth_csv(tmp_path / "t.csv", {f"data/scans/{scan}": k for scan, k in TRUTH.items()})
    found = evaluate(infer_results(tmp_path / "out", POSITIVE), whole)
    assert (found.exit_status, found.scores["scans"]) == (0, 5)
    short = truth_csv(tmp_path / "u.csv", {scan[2:]: k for scan, k in TRUTH.items()})
    assert evaluate(tmp_path / "out", short).scores["scans"] == 5


def test_a_path_that_may_be_two_scans_is_an_error(tmp_path):
    two = truth_csv(tmp_path / "t.csv", {"x/a.nii.gz": 0, "y/a.nii.gz": 1})
    with pytest.raises(FastmedError, match="a may be any of x/a, y/a; give the whole path"):
        evaluate(predictions_csv(tmp_path / "p.csv", {"a.nii.gz": 0.5}), two)
    exact = predictions_csv(tmp_path / "q.csv", {"y/a.nii.gz": 0.4, "x/a.nii.gz": 0.3})
    assert evaluate(exact, two).scores["auc"] == 1


def test_two_predictions_of_one_scan_are_an_error(tmp_path, truth):
    twice = predictions_csv(tmp_path / "p.csv", {"x/a.nii.gz": 0.5, "x/a.mha": 0.4})
    with pytest.raises(FastmedError, match="truth of both"):
        evaluate(twice, truth)


def test_labels_may_be_names_and_columns_have_other_names(tmp_path):
    named = {scan: NAMES[k] for scan, k in TRUTH.items()}
    truth = truth_csv(tmp_path / "t.csv", named, header="name,patient,target")
    table = predictions_csv(tmp_path / "p.csv", POSITIVE, "name,x,p_negative,p_covid")
    assert evaluate(table, truth).scores["auc"] == pytest.approx(4 / 6)


def test_a_table_of_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path, truth):
    truth.write_bytes(b"\xef\xbb\xbf" + truth.read_bytes())
    assert evaluate(by_table(tmp_path), truth).exit_status == 0


def test_what_has_no_partner_is_named_on_either_side(tmp_path, truth):
    positive = {scan: p for scan, p in POSITIVE.items() if scan != "x/b.nii.gz"} | {"z.nii": 0.1}
    found = evaluate(predictions_csv(tmp_path / "p.csv", positive), truth)
    assert found.exit_status == 1
    assert found.problems == ("no label for z", "no prediction for x/b")
    assert found.scores["scans"] == 4


def with_label(label):
    def made(path):
        truth_csv(path / "t.csv", TRUTH | {"x/b.nii.gz": label})
        return by_table(path), path / "t.csv"

    return made


def with_probability(value):
    def made(path):
        table = by_table(path)
        table.write_text(table.read_text().replace("0.7\n", f"{value}\n"))
        return table, truth_csv(path / "t.csv", TRUTH)

    return made


def with_columns(header):
    def made(path):
        table = predictions_csv(path / "p.csv", POSITIVE, header)
        return table, truth_csv(path / "t.csv", TRUTH)

    return made


def with_findings(**changes):
    def made(path):
        infer_results(path / "out", POSITIVE)
        file = path / "out" / "series" / "x__c.nii.gz" / "findings.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return path / "out", truth_csv(path / "t.csv", TRUTH)

    return made


BAD = {
    "an unknown label": (with_label("cov"), "t.csv, line 3: label 'cov' is none of negative"),
    "a label out of range": (with_label(2), "t.csv, line 3: label '2'"),
    "no label": (with_label(""), "t.csv, line 3: label ''"),
    "NaN": (with_probability("nan"), "predictions.csv, line 4: a probability"),
    "missing": (with_probability(""), "predictions.csv, line 4: a probability"),
    "no distribution": (with_probability("0.9"), "expected 0..1, sum 1"),
    "no probabilities": (with_columns("path,target,a,b"), "expected a column p_<label>"),
    "no path": (with_columns("file,target,p_a,p_b"), "expected a column path or name"),
    "no scores": (with_findings(scores=[]), "x__c.nii.gz/findings.json: it holds no scores"),
    "null": (
        with_findings(scores=[{"label": n, "probability": None} for n in NAMES]),
        "x__c.nii.gz/findings.json: not readable",
    ),
    "other labels": (
        with_findings(scores=[{"label": n, "probability": 0.5} for n in "ab"]),
        "x__c.nii.gz/findings.json: its labels are",
    ),
    "an empty table": (
        lambda p: (by_table(p), truth_csv(p / "t.csv", {})), "t.csv: it has no rows",
    ),
    "a path twice": (
        lambda p: (by_table(p), truth_csv(p / "t.csv", TRUTH | {"x/a.mha": 0})),
        "t.csv, line 7: x/a stands in",
    ),
    "nothing in common": (
        lambda p: (by_table(p), truth_csv(p / "t.csv", {"q": 1})), "no prediction has the path",
    ),
    "no results": (lambda p: (p, truth_csv(p / "t.csv", TRUTH)), "holds neither predictions.csv"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_scored_is_named(made, words, tmp_path):
    with pytest.raises(FastmedError) as raised:
        evaluate(*made(tmp_path))
    assert words in str(raised.value)


def test_absent_paths_and_a_folder_of_truth_are_a_wrong_usage(tmp_path, truth):
    for paths in ((tmp_path / "no", truth), (by_table(tmp_path), tmp_path / "no"),
                  (by_table(tmp_path), tmp_path)):  # fmt: skip
        with pytest.raises(UsageError, match=r"--predictions|--truth"):
            evaluate(*paths)


def test_the_command_prints_a_table_and_writes_json(tmp_path, truth, capsys):
    words = ["evaluate", "--task", "classification", "--truth", str(truth)]
    words += ["--predictions", str(by_table(tmp_path)), "--json", str(tmp_path / "s.json")]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "ROC AUC" in out
    assert "0.6667" in out
    scores = json.loads((tmp_path / "s.json").read_text())
    assert {"auc", "auc_band", "accuracy", "f1", "confusion", "calibration"} <= scores.keys()
    assert scores["calibration"][0]["probability"] is None
    assert scores["confusion"] == [[1, 1], [1, 2]]
