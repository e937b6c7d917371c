"""Evaluate, detection by LUNA16's rules: the published layouts, and each flaw with its place."""

import json

import pytest

import fastmed
from fastmed.cli import main
from fastmed.errors import FastmedError, UsageError

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.10000000000000000000000000000"
SERIES = [f"{UID}{k}" for k in range(4)]
HEADER = ["seriesuid", "coordX", "coordY", "coordZ"]
FINDINGS = [(0, 0.0, 0.0, 0.0, 10.0), (1, 50.0, 0.0, 0.0, 10.0), (3, 0.0, 0.0, 0.0, 10.0)]
EXCLUDED = [(2, -60.5, 0.0, 0.0, -1)]
MARKS = [
    (0, 4.9, 0.0, 0.0, 0.9),
    (0, 4.9, 0.1, 0.0, 0.85),
    (0, 0.0, 50.0, 0.0, 0.8),
    (1, 50.0, 0.0, 4.0, 0.7),
    (1, 0.0, 50.0, 0.0, 0.6),
    (2, -60.0, 1.0, 0.0, 0.99),
    (2, 0.0, 50.0, 0.0, 0.5),
]


def write(folder, names=SERIES, comma=",", listed=None, changes=None):
    """The four files of a challenge; `changes` replaces whole texts by file name."""
    of_rows = {
        "marks.csv": ("probability", MARKS),
        "annotations.csv": ("diameter_mm", FINDINGS),
        "annotations_excluded.csv": ("diameter_mm", EXCLUDED),
    }
    for file, (last, rows) in of_rows.items():
        lines = [[*HEADER, last], *([names[row[0]], *map(str, row[1:])] for row in rows)]
        (folder / file).write_text("".join(comma.join(map(str, line)) + "\n" for line in lines))
    (folder / "seriesuids.csv").write_text("\n".join(listed or map(str, names)) + "\n")
    for file, text in (changes or {}).items():
        (folder / file).write_text(text)
    return folder


def evaluate(folder, **arguments):
    arguments = {
        "predictions": folder / "marks.csv", "truth": folder / "annotations.csv",
        "excluded": folder / "annotations_excluded.csv", "series": folder / "seriesuids.csv",
    } | arguments  # fmt: skip
    return fastmed.evaluate(task="detection", luna16=True, quiet=True, **arguments)


INTEGERS = list(range(1, 5))
LAYOUTS = {
    "as published": {},
    "tabs": {"comma": "\t"},
    "a header in the list": {"listed": ["seriesuid", *SERIES]},
    "quotes and spaces": {"listed": [f'" {name} "' for name in SERIES]},
    "integers": {"names": INTEGERS},
    "integers as a spreadsheet's numbers": {"names": ["1.0", "2.0", "3.0", "4.0"],
                                            "listed": ["1", "2", "3", "4"]},
    "integers in quotes": {"names": INTEGERS, "listed": ['"1"', '"2"', '"3"', '"4"']},
    "a list of several columns": {"listed": ["fold,seriesuid", *(f"0,{n}" for n in SERIES)]},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_literal_case_in_every_published_layout(layout, tmp_path):
    found = evaluate(write(tmp_path, **layout))
    assert (found.exit_status, found.problems) == (0, ())
    scores = found.scores
    counts = ("scans", "findings", "excluded", "marks", "kept_marks", "hits", "false_positives")
    assert [scores[name] for name in counts] == [4, 3, 1, 7, 7, 2, 3]
    assert scores["sensitivities"] == pytest.approx([1 / 3, *[2 / 3] * 6])
    assert scores["cpm"] == pytest.approx((1 / 3 + 6 * 2 / 3) / 7)
    assert scores["ap"] == pytest.approx((1 + 2 / 3) / 3)
    assert all(low <= high for low, high in scores["band"])
    assert len(scores["band"]) == 7


def test_columns_may_stand_in_any_order_and_others_are_ignored(tmp_path):
    rows = [f"{score},x,{z},{y},{x},{SERIES[k]}" for k, x, y, z, score in MARKS]
    text = "\n".join(["probability,note,coordZ,coordY,coordX,seriesuid", *rows])
    found = evaluate(write(tmp_path, changes={"marks.csv": text}))
    assert found.scores["hits"] == 2


def test_a_folder_with_marks_csv_is_taken(tmp_path):
    assert evaluate(write(tmp_path), predictions=tmp_path).scores["hits"] == 2


def test_what_is_of_no_listed_series_is_left_out_and_counted(tmp_path):
    scores = evaluate(write(tmp_path, listed=SERIES[:2])).scores
    assert scores["left_out"] == {"marks": 2, "findings": 1, "excluded": 1}
    assert (scores["scans"], scores["findings"], scores["hits"]) == (2, 2, 2)


def test_no_marks_at_all_find_nothing(tmp_path):
    header = ",".join([*HEADER, "probability"]) + "\n"
    scores = evaluate(write(tmp_path, changes={"marks.csv": header})).scores
    assert (scores["cpm"], scores["hits"], scores["ap"]) == (0, 0, 0)


def broken(file, line, cell, value):
    def made(folder):
        write(folder)
        lines = (folder / file).read_text().splitlines()
        cells = lines[line - 1].split(",")
        cells[cell] = value
        lines[line - 1] = ",".join(cells)
        (folder / file).write_text("\n".join(lines))
        return folder

    return made


BAD = {
    "a word": (broken("marks.csv", 3, 2, "far"), "marks.csv, line 3: coordY 'far': expected a"),
    "NaN": (broken("marks.csv", 8, 4, "nan"), "marks.csv, line 8: probability 'nan'"),
    "nothing": (broken("annotations.csv", 2, 4, ""), "annotations.csv, line 2: diameter_mm ''"),
    "infinite": (
        broken("annotations_excluded.csv", 2, 1, "inf"), "excluded.csv, line 2: coordX 'inf'",
    ),
    "no series": (broken("marks.csv", 4, 0, " "), "marks.csv, line 4: seriesuid is empty"),
    "a column": (broken("marks.csv", 1, 4, "score"), "marks.csv: expected a column probability"),
    "too few cells": (
        lambda p: write(p, changes={"marks.csv": "seriesuid,coordX\n1\n"}),
        "marks.csv, line 2: 1 cells, the header has 2",
    ),
    "empty": (lambda p: write(p, changes={"annotations.csv": ""}), "annotations.csv: it is empty"),
    "an empty list": (lambda p: write(p, changes={"seriesuids.csv": ""}), "lists no series"),
    "a series twice": (
        lambda p: write(p, listed=[*SERIES, SERIES[1]]), "seriesuids.csv, line 5: series",
    ),
    "1 and 1.0 are one series": (
        lambda p: write(p, names=INTEGERS, listed=["1", "2", "1.0"]), "line 3: series '1' stands",
    ),
    "other series": (lambda p: write(p, listed=["7", "8"]), "marks.csv: no mark is of a series"),
    "no finding": (lambda p: write(p, listed=SERIES[2:3]), "annotations.csv: no nodule is of a"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "words"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_scored_is_named_with_its_place(made, words, tmp_path):
    with pytest.raises(FastmedError) as raised:
        evaluate(made(tmp_path))
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["predictions", "truth", "excluded", "series"])
def test_an_absent_file_is_a_wrong_usage(name, tmp_path):
    write(tmp_path)
    with pytest.raises(UsageError, match=f"--{name} .*no such file"):
        evaluate(tmp_path, **{name: tmp_path / "no.csv"})


def test_a_folder_without_marks_csv_says_what_makes_it(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"holds no marks\.csv; fastmed infer --write luna"):
        evaluate(write(tmp_path), predictions=tmp_path / "out")


WRONG = {
    "no series": ({"luna16": True, "excluded": "e"}, "--series: --luna16 needs this file"),
    "no excluded": ({"luna16": True, "series": "s"}, "--excluded: --luna16 needs this file"),
    "series alone": ({"series": "seriesuids.csv"}, "--series: goes with --luna16"),
    "another task": ({"task": "classification", "luna16": True}, "--luna16: goes with --task det"),
    "another format": ({"froc": "f.pdf"}, r"--froc f.pdf: expected a file name .* \.png"),
    "a picture": ({"task": "segmentation", "froc": "f.png"}, "--froc: goes with --task detection"),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(arguments, words, tmp_path):
    write(tmp_path)
    for name, file in (("e", "annotations_excluded.csv"), ("s", "seriesuids.csv")):
        arguments = {k: tmp_path / file if v == name else v for k, v in arguments.items()}
    arguments = {"task": "detection"} | arguments
    with pytest.raises(UsageError, match=words):
        fastmed.evaluate(tmp_path / "marks.csv", tmp_path / "annotations.csv", **arguments)


def test_the_command_prints_a_table_writes_json_and_draws_the_curve(tmp_path, capsys):
    write(tmp_path, listed=["seriesuid", *SERIES[:3]])
    words = ["evaluate", "--task", "detection", "--luna16"]
    for flag, file in (
        ("predictions", "marks.csv"), ("truth", "annotations.csv"), ("json", "out/s.json"),
        ("excluded", "annotations_excluded.csv"), ("series", "seriesuids.csv"),
        ("froc", "out/froc.png"),
    ):  # fmt: skip
        words += [f"--{flag}", str(tmp_path / file)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "CPM" in out
    assert "false positives per scan" in out
    assert "1 findings" in err
    scores = json.loads((tmp_path / "out/s.json").read_text())
    assert len(scores["sensitivities"]) == len(scores["band"]) == 7
    assert {"cpm", "ap", "left_out", "resamples"} <= scores.keys()
    assert (tmp_path / "out/froc.png").read_bytes().startswith(b"\x89PNG")
