"""The harness of the kernel benches: ratios, gates, the table, the memory meter, the rivals."""

import math
import sys
from pathlib import Path

import pytest
import torch

from fastmed import ops
from fastmed.testing import OP_CASES, OpCase, strewn_boxes

_BENCHES = Path(__file__).parents[2] / "benches"
_MODULES = ("kernel_meter", "kernel_table", "rivals")


@pytest.fixture(scope="module")
def benches():
    """The modules of benches/, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_BENCHES))
        yield {name: __import__(name) for name in _MODULES}
        for name in [name for name in sys.modules if name.split(".")[0] in _MODULES]:
            sys.modules.pop(name)


@pytest.fixture
def table(benches):
    return benches["kernel_table"]


@pytest.fixture
def row(table):
    return table.Row(
        "nms",
        "3d",
        "cpu",
        0.002,
        rivals={"MONAI": 0.3},
        copy=0.001,
        warm_copy=0.0005,
        fresh=0.008,
        limit=0.004,
        extra=4.0 * 2**20,
        rivals_extra={"MONAI": 8.0 * 2**20},
    )


def test_ratios_say_how_many_times_longer_a_rival_takes(row):
    assert row.ratios() == {"MONAI": pytest.approx(150.0)}


def test_measures_are_the_kernels_part_of_each_yardstick(table, row):
    other = table.Row("nms", "3d-small", "cpu", 0.0005)
    found = table.measures(row, [row, other])
    assert found == {
        "plain copy of the output": pytest.approx(2.0),
        "warm copy": pytest.approx(4.0),
        "itself, in fresh memory": pytest.approx(0.25),
        "limit": pytest.approx(0.5),
        "extra memory, MB": pytest.approx(4.0),
        "extra memory of MONAI": pytest.approx(0.5),
        "time of nms-3d-small": pytest.approx(4.0),
    }


def test_a_ratio_below_its_floor_fails_and_says_so(table, row):
    (sentence,) = table.fallen([row], {"nms-3d": {"MONAI": 160}})
    assert sentence == "nms-3d: 150.00 times faster than MONAI, the floor is 160"
    assert table.fallen([row], {"nms-3d": {"MONAI": 150}}) == []


def test_a_call_without_a_gate_passes_where_it_is_the_faster_one(table, row):
    assert table.fallen([row], {}) == []


def test_a_rival_that_is_faster_fails_also_without_a_gate(table):
    slow = table.Row("nms", "tiny", "cpu", 0.002, large=False, rivals={"MONAI": 0.001})
    (sentence,) = table.fallen([slow], {})
    assert sentence.startswith("SLOWER: nms-tiny: 0.50 times faster than MONAI")
    assert table.fallen([slow], {"nms-tiny": {"MONAI": 0.4}}) == []


@pytest.mark.parametrize(
    ("name", "bound", "failures"),
    [
        ("plain copy of the output", 1.8, 1),
        ("plain copy of the output", 2.1, 0),
        ("limit", 0.4, 1),
        ("extra memory, MB", 3, 1),
        ("extra memory of MONAI", 0.6, 0),
        ("time of nms-absent", 12, 0),
    ],
)
def test_upper_bounds_hold_the_kernel_to_other_yardsticks(table, row, name, bound, failures):
    gates = {"nms-3d": {"at_most": {name: bound}}}
    assert len(table.fallen([row], gates)) == failures


def test_the_time_of_another_call_can_bound_a_call(table, row):
    larger = table.Row("nms", "3d-larger", "cpu", 0.03)
    gates = {"nms-3d-larger": {"at_most": {"time of nms-3d": 12}}}
    (sentence,) = table.fallen([row, larger], gates)
    assert sentence == "nms-3d-larger: 15.00 of time of nms-3d, may be 12 at most"


def test_what_could_not_be_measured_cannot_fail(table):
    bare = table.Row("nms", "3d", "cpu", 0.002)
    assert table.fallen([bare], {"nms-3d": {"at_most": {"extra memory, MB": 1}}}) == []


def test_gates_of_the_cpu_do_not_bind_a_gpu(table, row):
    from dataclasses import replace

    assert table.fallen([replace(row, device="cuda")], {"nms-3d": {"MONAI": 999}}) == []
    assert replace(row, device="cuda").key == "nms-3d on cuda"


def test_suggested_gates_are_toml_at_seventy_percent(table, row):
    import tomllib

    assert tomllib.loads(table.suggested([row])) == {"nms-3d": {"MONAI": 105}}


def test_the_table_shows_every_rival_with_its_verdict(table, row):
    lines = table.lines([row], {"nms-3d": {"MONAI": 160, "at_most": {"limit": 1}}})
    assert lines[0] == [
        "nms-3d", "2.00", "4.0", "MONAI", "300", "150x", "8.0", ">= 160", "BELOW"
    ]  # fmt: skip
    limit = next(line for line in lines if line[3] == "limit")
    assert limit[3:] == ["limit", "4.00", "0.50 of it", "", "<= 1", "ok"]
    assert all(len(line) == len(table.HEADER) for line in lines)
    assert "150x" in table.text(lines)
    assert table.markdown(lines).count("\n") == len(lines) + 1


def test_small_calls_share_a_line_that_names_the_worst(table):
    rows = [
        table.Row("nms", name, "cpu", 1.0, large=False, rivals={"MONAI": taken})
        for name, taken in (("a", 3.0), ("b", 0.5), ("c", 4.0))
    ]
    (line,) = table.small(rows)
    assert line == (
        "nms: 3 small calls; times faster: least 0.50x (b, MONAI), median 3.00x; slower in 1 of 3"
    )


def test_the_table_goes_between_the_marks_of_a_document(table, tmp_path):
    document = tmp_path / "kernels.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_into(document, "new")
    assert document.read_text() == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"


def test_every_gate_names_a_call(table):
    import tomllib

    gates = tomllib.loads((_BENCHES / "gates.toml").read_text(encoding="utf-8"))
    assert table.unknown(gates, [str(case) for case in OP_CASES]) == []


def test_the_memory_meter_sees_what_a_call_takes_beside_its_output(benches):
    meter = benches["kernel_meter"]

    def takes_64_mb():
        held = torch.ones(64 << 20, dtype=torch.uint8)
        return held[: 16 << 20].clone()

    extra = meter.observe(takes_64_mb).extra
    if math.isnan(extra):
        pytest.skip("this system does not count peak memory")
    assert 60 << 20 < extra < 70 << 20
    assert meter.observe(lambda: torch.ones(64 << 20, dtype=torch.uint8)).extra < 6 << 20


def test_memory_of_earlier_results_hides_nothing_of_a_calls_own(benches):
    meter = benches["kernel_meter"]
    before = ops.keep_result_memory(256 << 20)

    def takes_64_mb():
        large = ops.window_resample(torch.zeros(1, 1, 1), torch.eye(3, 4), (64, 512, 512))
        return large[:1].clone()

    try:
        takes_64_mb()
        extra = meter.observe(takes_64_mb).extra
        assert ops.keep_result_memory(256 << 20) == 256 << 20
    finally:
        ops.keep_result_memory(before)
    if math.isnan(extra):
        pytest.skip("this system does not count peak memory")
    assert 60 << 20 < extra < 70 << 20


def test_a_race_times_everybody_once_a_round_and_slow_ones_less_often(benches):
    calls = []
    race = benches["kernel_meter"].Race("cpu", most=5)
    race.enter("quick", lambda: calls.append("quick"), 0.01)
    race.enter("slow", lambda: calls.append("slow"), 2.0)
    race.enter("slowest", lambda: calls.append("slowest"), 9.0)
    for _ in range(6):
        race.setup()
    assert {name: calls.count(name) for name in race.calls} == {
        "quick": 5, "slow": 3, "slowest": 2
    }  # fmt: skip
    assert [len(race.taken[name]) for name in race.calls] == [5, 3, 3]


def test_a_rival_that_does_other_work_is_found_out(benches):
    rivals = benches["rivals"]
    values = torch.arange(1000.0)
    near = rivals.Rival(lambda: None, atol=0.5, share=0.01)
    near.check("near", values, values + 0.4)
    with pytest.raises(rivals.Disagreement, match=r"other: 100\.000% of values differ"):
        near.check("other", values, values + 1)
    with pytest.raises(rivals.Disagreement, match="short"):
        near.check("short", values, values[1:])


def _cases(*ops_and_names):
    return [case for case in OP_CASES if not case.large and str(case) in ops_and_names]


@pytest.mark.parametrize(
    "case",
    _cases(
        "window_resample-aligned-linear-edge",
        "window_resample-oblique-linear-fill",
        "window_resample-flipped-nearest-fill",
        "window_resample-patches",
        "window_resample-batch",
        "resample_argmax-aligned-5-edge",
        "resample_argmax-oblique-5-outside",
        "resample_argmax-flipped-1-edge",
        "overlap_counts-int16-ignore",
    ),
    ids=str,
)
def test_rivals_of_plain_torch_agree_with_the_kernels(benches, case):
    arguments = case.make("cpu")
    answer = getattr(ops, case.op)(*arguments, **case.keywords)
    found = benches["rivals"].of(case, arguments) if _has_monai() or _torch_alone(case) else {}
    for name, rival in found.items():
        rival.check(name, answer, rival.call())


def test_padded_groups_are_greedy_nms_group_by_group(benches):
    padded = benches["rivals"].boxes.padded_groups
    boxes, scores = strewn_boxes(300, 3, 60.0)
    groups = torch.randint(0, 7, [300], generator=torch.Generator().manual_seed(4))
    kept = []
    for group in groups.unique():
        left = (groups == group).nonzero()[:, 0]
        left = left[scores[left].argsort(descending=True)]
        while len(left):
            kept.append(int(left[0]))
            iou = benches["rivals"].boxes._pairwise_iou(boxes[left[:1]], boxes[left])[0]
            left = left[(iou <= 0.1) & (left != left[0])]
    expected = sorted(kept, key=lambda index: -float(scores[index]))
    assert padded(boxes, scores, groups, 0.1).tolist() == expected


def _has_monai() -> bool:
    from importlib import util

    return util.find_spec("monai") is not None


def _torch_alone(case: OpCase) -> bool:
    return case.op == "resample_argmax" or case.keywords.get("ignore_index") is not None
