"""The reliability table: runs every attack on files, downloads and the store, and prints what came.

`make reliability` runs the full tier (about ten minutes) and writes `tests/reliability.md`;
`python tests/reliability.py --quick` runs that of `make test` and writes nothing. Ends with 0 when
every attack met its goal.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tests.support.figures import LARGEST, SUMMED  # noqa: E402 - the line above finds it
from tests.support.reliability_rows import ATTACKS, GOALS, Attack  # noqa: E402

_WORDS = {
    "bad_files": "bad files",
    "orphan_bytes": "orphan bytes",
    "outside_bytes": "bytes outside",
    "refetched_bytes": "fetched again, most",
    "sent_ratio": "sent, most",
    "lock_free_s": "lock free after",
    "stall_noticed_s": "stall noticed after",
    "reject_s": "refused within",
}


@dataclass
class Outcome:
    """What came of one attack."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    cases: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, report: pytest.TestReport) -> None:
        """Count one test."""
        if report.skipped:
            self.skipped += 1
            return
        self.failed += report.failed
        self.passed += report.passed
        own: dict[str, list[float]] = defaultdict(list)
        for name, value in report.user_properties:
            own[name].append(float(str(value)))
        self.cases += int(sum(own.pop("cases", [1])))
        for name, values in own.items():
            before = self.figures.get(name, 0.0)
            if name in SUMMED:
                self.figures[name] = before + sum(values)
            elif name in LARGEST:
                self.figures[name] = max(before, *values)

    def result(self, attack: Attack) -> str:
        """The word of the table."""
        over = [x for x, most in attack.limits.items() if self.figures.get(x, 0) > most]
        if self.failed or over:
            return "FAILED"
        return "met" if self.passed else "not run"


class Collector:
    """The pytest plugin: keeps the outcome of each attack."""

    def __init__(self) -> None:
        self.outcomes = {x: Outcome() for x in map(id, ATTACKS)}
        self._of: dict[str, list[Attack]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave out what belongs to no attack."""
        for item in items:
            found = [x for x in ATTACKS if any(matches(item.nodeid, y) for y in x.tests)]
            if found:
                self._of[item.nodeid] = found
        config.hook.pytest_deselected(items=[x for x in items if x.nodeid not in self._of])
        items[:] = [x for x in items if x.nodeid in self._of]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: its call, or the setup that failed or skipped it."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            for attack in self._of.get(report.nodeid, ()):
                self.outcomes[id(attack)].add(report)


def matches(nodeid: str, test: str) -> bool:
    """Whether a test as pytest names it is the one that a row names."""
    name, _, parameters = test.partition("[")
    found, _, its_parameters = nodeid.removeprefix("tests/").partition("[")
    return found == name and its_parameters.startswith(parameters)


def table(outcomes: Mapping[int, Outcome]) -> Iterable[str]:
    """Markdown: one line for each attack under a line for each row."""
    yield "| row | attack | cases | result | measured |"
    yield "|---|---|---:|---|---|"
    last = ""
    for attack in ATTACKS:
        if attack.row != last:
            goal, peers = GOALS[attack.row]
            yield f"| **{attack.row}** | *goal: {goal}* | | | *peers: {peers}* |"
            last = attack.row
        outcome = outcomes[id(attack)]
        shown = (f"{_WORDS[x]}: {_value(x, y)}" for x, y in sorted(outcome.figures.items()))
        skipped = (f"{outcome.skipped} skipped",) if outcome.skipped else ()
        measured = "; ".join((*shown, *skipped))
        yield (
            f"| {attack.row} | {attack.name} | {outcome.cases:,} | {outcome.result(attack)} "
            f"| {measured} |"
        )


def _value(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return "0" if not value else f"{value / (1 << 20):.2f} MiB"
    if name.endswith("_s"):
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
    return f"{value:.3f} x" if name == "sent_ratio" else f"{value:.0f}"


PAGE = REPOSITORY / "tests" / "support" / "reliability_page.md"


def machine() -> str:
    """What it ran on, in words."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({name}), Python {platform.python_version()}"


def page(outcomes: Mapping[int, Outcome], seconds: float, sum_line: str) -> str:
    """The text of tests/reliability.md."""
    every: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes.values():
        for name, value in outcome.figures.items():
            every[name].append(value)
    drops = next(x for x in ATTACKS if x.name.startswith("drop each 1,"))
    head = PAGE.read_text(encoding="utf-8").format(
        date=date.today().isoformat(),
        seconds=seconds,
        machine=machine(),
        sum_line=sum_line,
        bad_files=f"{sum(every['bad_files']):.0f}",
        refetched=_value("refetched_bytes", max(every["refetched_bytes"], default=0)),
        orphan=_value("orphan_bytes", sum(every["orphan_bytes"])),
        ratio=_value("sent_ratio", outcomes[id(drops)].figures.get("sent_ratio", 0)),
        outside=_value("outside_bytes", sum(every["outside_bytes"])),
        lock=_value("lock_free_s", max(every["lock_free_s"], default=0)),
    )
    return head + "\n".join(table(outcomes)) + "\n"


def main() -> int:
    """Run and print; 0 when every attack met its goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tier of `make test` alone")
    args = parser.parse_args()
    os.chdir(REPOSITORY)
    files = sorted({"tests/" + x.partition("::")[0] for attack in ATTACKS for x in attack.tests})
    tier = ["-m", "not slow"] if args.quick else []
    collector = Collector()
    begin = time.monotonic()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tier, *files], plugins=[collector])
    print()
    for line in table(collector.outcomes):
        print(line)
    results = [collector.outcomes[id(x)].result(x) for x in ATTACKS]
    cases = sum(x.cases for x in collector.outcomes.values())
    counts = {x: results.count(x) for x in ("met", "FAILED", "not run")}
    seconds = time.monotonic() - begin
    sum_line = (
        f"{len(ATTACKS)} attacks, {cases:,} cases: {counts['met']} met their goal, "
        f"{counts['FAILED']} failed, {counts['not run']} not run"
    )
    print(f"\n{sum_line}, in {seconds:.0f} s")
    if not args.quick:
        Path("tests/reliability.md").write_text(
            page(collector.outcomes, seconds, sum_line), encoding="utf-8"
        )
    # In the quick tier some have nothing to run.
    complete = counts["FAILED"] == 0 and (args.quick or counts["not run"] == 0)
    return 0 if code == pytest.ExitCode.OK and complete else 1


if __name__ == "__main__":
    sys.exit(main())
