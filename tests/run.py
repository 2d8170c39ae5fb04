"""Runs every check part by part, prints the time of each, and ends with one line of counts.

`make test` runs the default tier; `--full` adds sanitizers and long tiers; `--only` runs one part.
A part that cannot run here (a missing cross compiler) exits with 77 and is reported as skipped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
PYTHON_FOLDERS = ["app", "runtime", "kernels", "tests"]
SKIPPED = 77


def tracked(*patterns: str) -> list[str]:
    """Files under version control that match."""
    found = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=REPOSITORY, capture_output=True, text=True
    )
    return found.stdout.split()


def parts(full: bool) -> list[tuple[str, list[str]]]:
    """(name, command) of each part, cheapest first."""
    native = [sys.executable, "tests/native/run.py"]
    tier = [] if full else ["-m", "not slow"]
    listed: list[tuple[str, list[str]]] = [
        ("ruff", [str(BIN / "ruff"), "check", *PYTHON_FOLDERS]),
        ("ruff format", [str(BIN / "ruff"), "format", "--check", *PYTHON_FOLDERS]),
        (
            "clang-format",
            [str(BIN / "clang-format"), "--dry-run", "-Werror", *tracked("*.h", "*.cpp")],
        ),
        ("import layers", [str(BIN / "lint-imports"), "--no-cache"]),
        ("mypy", [str(BIN / "mypy")]),
        ("native", [*native]),
        ("native old x86", [*native, "--old-x86"]),
        ("native twins", [*native, "--twins"]),
        ("native aarch64", [*native, "--aarch64"]),
        ("unit", [*PYTEST, *tier, "tests/unit", "tests/formats"]),
        ("property", [*PYTEST, *tier, "tests/property"]),
        ("oracle", [*PYTEST, *tier, "tests/architectures", "tests/oracle"]),
        ("training", [*PYTEST, *tier, "tests/training"]),
        ("tui", [*PYTEST, *tier, "tests/tui"]),
        ("packaging", [*PYTEST, *tier, "tests/packaging"]),
    ]
    if full:
        listed += [
            ("native asan-ubsan", [*native, "--preset", "asan-ubsan"]),
            ("native tsan", [*native, "--preset", "tsan"]),
        ]
    return listed


def main() -> int:
    """Run the parts; 0 when none failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="add sanitizers and the long tiers")
    parser.add_argument("--only", metavar="PART", help="run one part by name")
    args = parser.parse_args()
    rows: list[tuple[str, str, float]] = []
    for name, command in parts(args.full):
        if args.only and name != args.only:
            continue
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(command, cwd=REPOSITORY, env=os.environ).returncode
        outcome = {0: "passed", SKIPPED: "skipped"}.get(code, "failed")
        rows.append((name, outcome, time.perf_counter() - start))
    print("\npart                 outcome        s")
    for name, outcome, seconds in rows:
        print(f"{name:20} {outcome:9} {seconds:6.1f}")
    count = {x: sum(1 for _, y, _ in rows if y == x) for x in ("passed", "failed", "skipped")}
    total = sum(seconds for _, _, seconds in rows)
    print(f"{'all':20} {'':9} {total:6.1f}\n")
    print(f"parts: {count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
