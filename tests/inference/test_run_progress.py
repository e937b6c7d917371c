"""Progress of an archive run: what a terminal, a log file and a quiet run get to see."""

import io

import pytest
from rich.console import Console

from fastmed.inference.run_progress import RunProgress


class _Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return _Time()


def _plain():
    return Console(file=io.StringIO(), width=200)


def _lines(console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_a_file_gets_a_line_every_ten_seconds(time):
    console = _plain()
    with RunProgress(100, console=console, clock=time) as progress:
        for quarter in range(4 * 35):
            time.now = quarter / 4
            progress.update(
                done=int(time.now), failed=1, stage_seconds={"read": 1.0, "network": 9.0}
            )
    assert [line.split(" · ")[0] for line in _lines(console)] == [
        "11 of 100 scans", "21 of 100 scans", "31 of 100 scans",
    ]  # fmt: skip
    assert (
        _lines(console)[1] == "21 of 100 scans · 1 failed · 3780 scans/h · 75 s left · network 90 %"
    )


@pytest.mark.parametrize(
    ("seconds", "ended", "words"),
    [
        (100, 50, "1800 scans/h · 3 min left"),  # 100 more at half a scan per second
        (3600, 1, "1 scans/h · 6 d 05 h left"),
        (3600, 20, "20 scans/h · 6 h 30 min left"),
    ],
)
def test_rate_and_time_left(seconds, ended, words, time):
    console = _plain()
    progress = RunProgress(150, console=console, clock=time)
    time.now = float(seconds)
    progress.update(done=ended)
    assert words in _lines(console)[0]


def test_what_an_earlier_run_did_has_no_rate(time):
    console = _plain()
    progress = RunProgress(1000, console=console, already_done=900, clock=time)
    time.now = 60.0
    progress.update(done=900)
    assert _lines(console) == ["900 of 1000 scans · 0 failed"]
    time.now = 120.0
    progress.update(done=910)
    assert _lines(console)[1] == "910 of 1000 scans · 0 failed · 300 scans/h · 18 min left"


def test_the_rate_follows_a_change(time):
    console = _plain()
    progress = RunProgress(10**6, console=console, clock=time)
    for second in range(1, 3601):  # an hour of one scan a second, then ten a second
        time.now = float(second)
        progress.update(done=second)
    for second in range(1, 1201):
        time.now = 3600.0 + second
        progress.update(done=3600 + 10 * second)
    assert " 36000 scans/h" in _lines(console)[-1]


def test_a_terminal_gets_a_bar_with_all_of_it(time):
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with RunProgress(10, console=console, clock=time) as progress:
        time.now = 60.0
        progress.update(
            done=2, failed=1, skipped=1, stage_seconds={"read": 3.0, "write": 1.0},
            current="scans/[b]\x1b[2J\x07a",
        )  # fmt: skip
        progress.say("scans/[red]x\x1b]0;title\x07: truncated")
    seen = console.file.getvalue()
    for words in ("4/10", "1 failed", "1 skipped", "240 scans/h", "90 s left", "read 75 %"):
        assert words in seen
    assert "scans/[b]?[2J?a" in seen
    assert "scans/[red]x?]0;title?: truncated" in seen


def test_a_failed_scan_is_a_line_of_its_own(time):
    console = _plain()
    progress = RunProgress(10, console=console, clock=time)
    progress.say("failed: scans/[a]: 2 slices missing")
    assert _lines(console) == ["failed: scans/[a]: 2 slices missing"]


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_is_silent(terminal, time):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with RunProgress(10, console=console, quiet=True, clock=time) as progress:
        time.now = 100.0
        progress.update(done=5)
        progress.say("a scan failed")
    assert console.file.getvalue() == ""


def test_without_a_console_it_is_stderr(time, capsys):
    with RunProgress(10, clock=time) as progress:
        progress.say("a scan failed")
    assert capsys.readouterr() == ("", "a scan failed\n")
