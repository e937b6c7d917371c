"""The table of bench_infer: what counts as outside the network, and when a gate speaks."""

import sys
from pathlib import Path

import pytest

_BENCHES = Path(__file__).parents[2] / "benches"


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_BENCHES))
        import infer_table

        yield infer_table
        sys.modules.pop("infer_table")


def run(table, **seconds):
    return table.Measured(seconds, whole=sum(seconds.values()), peak_mb=100.0)


def test_outside_the_network_leaves_out_forward_passes_and_what_is_loaded_once(table):
    one = run(table, start=1.0, load=2.0, read=4.0, network=8.0, stitch=16.0, write=32.0)
    assert one.outside_network == 4.0 + 16.0 + 32.0


def test_the_parts_of_decode_are_shown_and_not_counted_twice(table):
    one = run(table, network=1.0, decode=5.0, invert=3.0, argmax=2.0)
    assert one.outside_network == 5.0


def test_lines_are_medians_over_runs(table):
    runs = [run(table, read=seconds, network=9.0) for seconds in (1.0, 2.0, 30.0)]
    assert table.medians(runs)["read"] == table.medians(runs)["outside_network"] == 2.0


def test_gates_name_what_fell_below_and_by_how_much(table):
    gates = {"outside_network": 15.0, "peak_memory": 3.0}
    assert table.below(gates, {"outside_network": 15.0, "peak_memory": 3.1}) == []
    (sentence,) = table.below(gates, {"outside_network": 14.9, "peak_memory": 3.1})
    assert sentence == "outside network: the other needs 14.90 times as much, the gate is 15"
    assert len(table.below(gates, {"outside_network": float("nan"), "peak_memory": 9.0})) == 1


def test_a_stage_of_one_side_alone_has_no_ratio(table):
    ours = table.medians([run(table, index=0.5, read=1.0, network=1.0)])
    theirs = table.medians([run(table, read=4.0, network=1.0)])
    lines = table.text({"fastmed": ours, "MONAI": theirs}).splitlines()
    read = next(line for line in lines if line.startswith("read"))
    index = next(line for line in lines if line.startswith("index"))
    assert read.endswith("4.0x")
    assert index.split()[-2:] == ["0.50", "-"]
