"""Certify: every engine runs in a process of its own, and what misses a limit is passed over."""

import json
import shutil

import nibabel
import numpy as np
import onnx
import pytest

import fastmed
from fastmed import bundle
from fastmed.cli import main
from fastmed.errors import FastmedError, UsageError
from fastmed.inference import certify as certifying
from fastmed.inference.certificate import verdicts
from fastmed.inference.engines import open_engine
from fastmed.inference.engines.kinds import versions

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A NIfTI of soft tissue in air."""
    hu = np.full((24, 40, 44), -1000, np.int16)
    hu[2:22, 4:36, 4:40] = np.random.default_rng(0).integers(-150, 250, (20, 32, 36))
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hu.T, np.diag([3.0, 3, 3, 1])), path)
    return path


@pytest.fixture(scope="module")
def certified(tiny_bundle, scan, tmp_path_factory):
    """A bundle with a certificate, made by the command; what it printed lies beside it."""
    folder = tmp_path_factory.mktemp("certified") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    assert main(["certify", str(folder), "--scans", str(scan), "--device", "cpu", "--quiet"]) == 0
    return folder


@pytest.fixture
def copied(certified, tmp_path):
    return shutil.copytree(certified, tmp_path / "bundle")


def rows_of(folder):
    facts = json.loads((folder / "certificate.json").read_text())
    return {(row["engine"], row["precision"]): row for row in facts["rows"]}


def test_the_certificate_has_every_engine_and_precision(certified):
    facts, rows = json.loads((certified / "certificate.json").read_text()), rows_of(certified)
    assert facts["model"] == "tiny"
    assert facts["sha256"] == bundle.read(certified).sha256()
    assert facts["versions"].keys() >= {"torch", "ort", "ov"}
    assert (facts["reference"], facts["scans"]) == ("torch", ["scan.nii.gz"])
    assert rows.keys() >= {(e, p) for e in ("torch", "ort", "ov") for p in ("fp32", "fp16", "bf16")}
    for engine in ("ort", "ov"):
        row = rows[engine, "fp32"]
        assert row["verdict"] == "passed"
        assert 0 < row["agreement"]["logits_relative"] < 2e-3
        assert row["agreement"]["equal_labels"] > 0.999
        assert row["agreement"]["dice"]["liver"] > 0.99
        assert 0 < row["network_seconds"] < 60
        assert row["memory_mb"] is None or row["memory_mb"] > 1
    assert rows["torch", "fp32"]["agreement"]["logits_largest"] == 0
    assert rows["ort", "bf16"]["verdict"] == "absent"
    assert "bfloat16 for few operations" in rows["ort", "bf16"]["absent"]
    assert "fastmed export" in rows["ort", "fp16"]["absent"]


def test_the_table_has_a_line_for_each_that_ran_and_a_reason_for_the_others(certified):
    lines = (certified / "certificate.md").read_text().splitlines()
    assert lines[0].startswith("`tiny` on 1 scan, beside torch in fp32; ")
    ran = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert ran[:3].count("torch") == 1
    assert {"torch", "ov", "ort"} <= set(ran)
    assert any(line.startswith("- ort bf16: ONNX Runtime has bfloat16 for few") for line in lines)


def test_auto_takes_the_fastest_that_was_measured_here(copied):
    facts = json.loads((copied / "certificate.json").read_text())
    for row in facts["rows"]:
        row["network_seconds"] = {"ort": 0.1, "ov": 0.2}.get(row["engine"], 0.3)
        if (row["engine"], row["precision"]) == ("torch", "bf16") and row["agreement"]:
            row.update(verdict="passed", network_seconds=0.01, misses=[])
    (copied / "certificate.json").write_text(json.dumps(facts))
    read = bundle.read(copied)
    engine, sentence = open_engine(read, "auto", "cpu")
    assert (engine.name, engine.precision) == ("ort", "fp32")
    assert sentence == f"engine ort on cpu (the fastest in {copied / 'certificate.json'})"
    assert open_engine(read, "ov", "cpu")[0].name == "ov"
    if ("torch", "bf16") not in verdicts(read, "cpu", versions()).seconds:
        pytest.skip("this CPU has no bfloat16")
    assert open_engine(read, "auto", "cpu", "auto")[0].precision == "bf16"


def test_a_certificate_of_another_machine_says_nothing_of_speed(copied):
    facts = json.loads((copied / "certificate.json").read_text())
    facts["machine"]["cpu"] = "another"
    (copied / "certificate.json").write_text(json.dumps(facts))
    said = verdicts(bundle.read(copied), "cpu", versions())
    assert said.seconds == {}
    engine, sentence = open_engine(bundle.read(copied), "auto", "cpu", "auto")
    assert engine.precision == "fp32"
    assert "on cpu (the fastest on its tile: ov " in sentence


def test_a_library_of_another_version_is_not_taken_at_the_certificates_word(copied):
    facts = json.loads((copied / "certificate.json").read_text())
    for row in facts["rows"]:
        row["network_seconds"] = {"ov": 0.1, "ort": 0.2}.get(row["engine"], 0.3)
    facts["versions"]["ov"] = "2020.1"
    (copied / "certificate.json").write_text(json.dumps(facts))
    engine, sentence = open_engine(bundle.read(copied), "auto", "cpu")
    assert engine.name == "ort"
    assert sentence.endswith("certificate.json; ov: not in it as it is installed now)")
    assert open_engine(bundle.read(copied), "ov", "cpu", "auto")[0].precision == "fp32"


DAMAGED = {
    "no JSON": lambda text: text[:100],
    "no table": lambda text: "[1, 2]",
    "rows missing": lambda text: json.dumps(json.loads(text) | {"rows": [{}]}),
    "other weights": lambda text: text.replace(
        '"weights.safetensors": "', '"weights.safetensors": "0'
    ),
    "another format": lambda text: text.replace('"format": 1', '"format": 2'),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_certificate_that_does_not_fit_says_nothing(copied, damage):
    path = copied / "certificate.json"
    assert verdicts(bundle.read(copied), "cpu", versions()).seconds
    path.write_text(damage(path.read_text()))
    said = verdicts(bundle.read(copied), "cpu", versions())
    assert (said.refused, said.seconds) == ({}, {})


def test_a_file_exported_later_leaves_the_certificate_valid(copied):
    (copied / "model.fp16.onnx").write_bytes((copied / "model.onnx").read_bytes())
    assert verdicts(bundle.read(copied), "cpu", versions()).seconds


def test_an_engine_that_misses_the_limits_is_refused_by_auto_and_warned_about_by_name(
    tiny_bundle, scan, tmp_path
):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    model = onnx.load(folder / "model.onnx")  # still says which weights it is of
    last = next(t for t in model.graph.initializer if t.name.endswith("head.bias"))
    values = onnx.numpy_helper.to_array(last) + np.float32([0, 3])
    last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))
    onnx.save(model, folder / "model.onnx")
    found = fastmed.certify(folder, scan, device="cpu", quiet=True)
    verdict = {(row.engine, row.precision): row.verdict for row in found.rows}
    assert (verdict["torch", "fp32"], verdict["ov", "fp32"], verdict["ort", "fp32"]) == (
        "passed", "REFUSED", "REFUSED",
    )  # fmt: skip
    read = bundle.read(folder)
    engine, sentence = open_engine(read, "auto", "cpu")
    assert engine.name == "torch"
    engine, sentence = open_engine(read, "ov", "cpu")
    assert engine.name == "ov"
    assert "as asked, though" in sentence
    assert "certificate.json refuses it: logits differ by" in sentence


def test_an_engine_that_cannot_load_its_file_is_a_line_and_no_end(tiny_bundle, scan, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])
    found = fastmed.certify(folder, scan, device="cpu", quiet=True)
    for row in found.rows:
        if row.engine in ("ov", "ort") and row.precision == "fp32":
            assert row.verdict == "REFUSED"
            assert "model.onnx: cannot be read as ONNX" in row.misses[0]
            assert row.agreement is None
    assert open_engine(bundle.read(folder), "auto", "cpu")[0].name == "torch"


def test_a_process_that_dies_is_named_by_its_signal():
    assert certifying._failure(-11, "") == "its process was ended by SIGSEGV"
    assert certifying._failure(1, "one\ntwo\n") == "two"
    assert certifying._failure(3, "") == "its process ended with status 3"


def test_a_folder_without_scans_is_a_wrong_usage(tiny_bundle, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(UsageError, match=r"no scan here that tiny reads"):
        fastmed.certify(tiny_bundle, tmp_path)
    assert main(["certify", str(tiny_bundle), "--scans", str(tmp_path)]) == 2


def test_a_reference_that_fails_is_an_error(tiny_bundle, scan, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(
        FastmedError, match=r"torch, which others are compared with, fails: .*again"
    ):
        fastmed.certify(folder, scan, device="cpu", quiet=True)
    assert not (folder / "certificate.json").exists()
