"""Options, progress, the table at the end and the gates of the kernel benches."""

from __future__ import annotations

import platform
import time
import tomllib
from importlib import metadata
from pathlib import Path

import kernel_meter
import kernel_table
import pytest
import torch

from fastmed.inference.machine import processor

GATES = Path(__file__).with_name("gates.toml")


class Report:
    """What the benches of this run measured."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.gates = tomllib.loads(GATES.read_text(encoding="utf-8"))
        self.gated = not config.getoption("no_gates")
        self.measured: dict[str, kernel_table.Row] = {}
        self.copies: dict[str, kernel_meter.Copies] = {}
        self.speeds: dict[str, list[float]] = {}
        self.started = time.perf_counter()
        self.total = self.done = 0

    def copies_on(self, device: str) -> kernel_meter.Copies:
        if device not in self.copies:
            self.copies[device] = kernel_meter.Copies(device)
        return self.copies[device]

    def say(self, line: str) -> None:
        plugins = self.config.pluginmanager
        with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
            plugins.get_plugin("terminalreporter").write_line(line)

    @property
    def rows(self) -> list[kernel_table.Row]:
        return list(self.measured.values())

    def fallen(self) -> list[str]:
        """The sentences of all calls measured so far that fell below a gate."""
        return kernel_table.fallen(self.rows, self.gates)

    def add(self, row: kernel_table.Row) -> list[str]:
        """Keeps a row, instead of an earlier one of the same call; the gates it fell below."""
        self.measured[row.key] = row
        ratios = sorted((ratio, name) for name, ratio in row.ratios().items())
        if row.large or (ratios and ratios[0][0] < 1):
            against = f"; {ratios[0][1]} takes {ratios[0][0]:.3g} times as long" if ratios else ""
            spent = time.perf_counter() - self.started
            self.say(
                f"{self.done:4}/{self.total} {spent:4.0f} s  {row.key}: "
                f"{row.seconds * 1e3:.4g} ms{against}"
            )
        elif self.done % 20 == 0:
            self.say(f"{self.done:4}/{self.total} {time.perf_counter() - self.started:4.0f} s")
        fallen = kernel_table.fallen([row], self.gates) if self.gated else []
        for sentence in fallen:
            self.say(f"below its gate: {sentence}")
        return fallen

    def head(self) -> str:
        """The machine and the versions, for the table's head."""
        versions = ", ".join(
            f"{name} {metadata.version(name)}" for name in ("torch", "monai", "SimpleITK")
        )
        speeds = ", ".join(
            f"{'' if device == 'cpu' else device + ': '}"
            f"{kernel_meter.Copies.speed(sorted(taken)[len(taken) // 2]) / 1e9:.1f} GB/s"
            for device, taken in self.speeds.items()
        )
        lines = [
            f"{processor()} ({torch.backends.cpu.get_cpu_capability()}), "
            f"{torch.get_num_threads()} threads, {platform.system()} {platform.machine()}",
            f"{versions}, Python {platform.python_version()}; copy speed, read and written bytes "
            f"added up: {speeds}",
        ]
        if torch.cuda.is_available():
            lines.insert(1, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
        return "\n".join(lines)


REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernel benches")
    group.addoption("--threads", type=int, default=2, help="CPU threads of all sides (2)")
    group.addoption(
        "--table",
        type=Path,
        help="also write the table as markdown, between the marks of this file where it has them",
    )
    group.addoption(
        "--suggest-gates",
        action="store_true",
        help="print gates.toml at 70 %% of what was measured",
    )
    group.addoption(
        "--no-gates", action="store_true", help="show what falls below a gate, but do not fail"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("threads"))
    config.stash[REPORT] = Report(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[REPORT].total = len(session.items)


def pytest_report_teststatus(report):
    """Lines of progress stand for the usual dots."""
    return ("passed" if report.when == "call" else "", "", "") if report.passed else None


@pytest.fixture
def report(request) -> Report:
    found = request.config.stash[REPORT]
    found.done = min(found.done + 1, found.total)  # a call may be measured twice
    return found


def pytest_terminal_summary(terminalreporter, config) -> None:
    report = config.stash[REPORT]
    if not report.rows:
        return
    rows, gates = report.rows, report.gates
    table = kernel_table.lines(rows, gates)
    write = terminalreporter.write_line
    terminalreporter.section("kernels beside their rivals")
    small = kernel_table.small(rows)
    for part in (report.head(), "", kernel_table.text(table), "", *small):
        for line in part.split("\n"):
            write(line)
    write(f"{time.perf_counter() - report.started:.0f} s in all")
    path = config.getoption("table")
    if path is not None:
        parts = [report.head().replace("\n", "  \n"), "", kernel_table.markdown(table), ""]
        kernel_table.write_into(path, "\n".join([*parts, *(f"- {line}" for line in small)]))
    if config.getoption("suggest_gates"):
        terminalreporter.section("gates at 70 % of these ratios")
        write(kernel_table.suggested(rows))


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash[REPORT]
    if report.gated and report.fallen():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    report = config.stash.get(REPORT, None)
    if report is None:
        return
    for sentence in report.fallen():
        print(f"gate: {sentence}")
