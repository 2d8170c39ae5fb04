"""Static rules of the code base: file sizes, import hygiene, complete registries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LIMITS = {".py": 600, ".cpp": 800, ".h": 800}


def tracked(*patterns: str) -> list[Path]:
    """Files of this repository, or of the source tree where there is no git."""
    found = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=REPOSITORY, capture_output=True, text=True
    )
    if found.returncode == 0 and found.stdout:
        return [REPOSITORY / x for x in found.stdout.split() if (REPOSITORY / x).is_file()]
    roots = [REPOSITORY / x for x in ("app", "runtime", "kernels", "tests")]
    return [p for r in roots for x in patterns for p in r.rglob(x)]


def test_files_stay_short_enough_to_read() -> None:
    long = [
        f"{path.relative_to(REPOSITORY)}: {lines} lines, limit {LIMITS[path.suffix]}"
        for path in tracked("*.py", "*.cpp", "*.h")
        if (lines := len(path.read_text("utf-8").splitlines())) > LIMITS[path.suffix]
    ]
    assert not long, "\n".join(long)


def test_cpp_is_ascii() -> None:
    for path in tracked("*.cpp", "*.h"):
        path.read_text("ascii")


def test_no_vague_file_names() -> None:
    vague = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert not [x for x in tracked("*.py") if x.name in vague]


def test_no_unfinished_marks() -> None:
    mark = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    here = Path(__file__)
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in tracked("*.py", "*.cpp", "*.h")
        if path != here
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if mark.search(line)
    ]
    assert not found, "\n".join(found)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in sys.modules after a statement in a fresh interpreter."""
    code = f"import sys; {statement}; print(' '.join({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import qh_kernels", {"numpy", "qh_runtime", "qh_chat", "textual", "torch"}),
        ("import qh_kernels.decoder", {"qh_runtime", "qh_chat", "textual", "torch"}),
        ("import qh_runtime.loader", {"qh_chat", "textual", "torch", "transformers", "jinja2"}),
        ("import qh_chat", {"numpy", "textual", "torch", "qh_runtime"}),
        ("import qh_chat.cli", {"numpy", "textual", "torch", "transformers"}),
        ("import qh_chat.app", {"torch", "transformers", "jinja2"}),
    ],
)
def test_imports_go_downward_and_stay_light(statement: str, forbidden: set[str]) -> None:
    assert not loaded_by(statement) & forbidden


def test_every_format_is_known_to_both_sides() -> None:
    """The Python format files and the C++ format list name the same formats."""
    from qh_kernels.cpu import format_names
    from qh_runtime import formats
    from qh_runtime.formats import base

    folder = Path(formats.__file__).parent
    assert set(base.names()) <= {p.stem for p in folder.glob("*.py")}
    assert set(base.names()) == set(format_names())
    tests = {p.stem.removeprefix("test_") for p in (REPOSITORY / "tests/formats").glob("test_*.py")}
    assert set(base.names()) <= tests


def test_every_architecture_has_a_test() -> None:
    folder = REPOSITORY / "runtime/qh_runtime/architectures"
    not_models = {"__init__", "base", "registry", "config"}
    models = {p.stem for p in folder.glob("*.py") if '"""Architecture' in p.read_text("utf-8")}
    assert models, "no architecture file says so in its first line"
    tests = {
        p.stem.removeprefix("test_") for p in (REPOSITORY / "tests/architectures").glob("*.py")
    }
    assert models - not_models <= tests
