"""Compares a screen with its stored picture, an SVG that can be looked at in any browser.

`QH_TEST_UPDATE=1 pytest tests/tui/test_snapshots.py` stores the pictures anew; look at them before
they are committed. They hold for one version of Textual; with another the comparison is skipped.
"""

from __future__ import annotations

import asyncio
import html
import os
import re
import time
from pathlib import Path

import pytest
import textual
from textual.app import App

__all__ = ["assert_snapshot"]

VERSION_FILE = "textual-version.txt"


async def assert_snapshot(
    app: App[object], folder: Path, name: str, failures: Path, *, seconds: float = 10.0
) -> None:
    """The screen becomes equal to folder/name.svg. Raises AssertionError with the row that differs.

    Args:
        failures: where the picture of a failure is written.
        seconds: how long the last drawing may take on a slow machine.
    """
    stored = folder / f"{name}.svg"
    version = folder / VERSION_FILE
    if os.environ.get("QH_TEST_UPDATE") == "1":
        await asyncio.sleep(1.0)
        folder.mkdir(parents=True, exist_ok=True)
        stored.write_text(_picture(app), encoding="utf-8")
        version.write_text(textual.__version__ + "\n", encoding="utf-8")
        return
    recorded = version.read_text(encoding="utf-8").strip()
    if recorded != textual.__version__:
        pytest.skip(f"pictures are of Textual {recorded}, this is {textual.__version__}")
    expected = stored.read_text(encoding="utf-8")
    end = time.monotonic() + seconds
    while (found := _picture(app)) != expected and time.monotonic() < end:
        await asyncio.sleep(0.05)
    if found == expected:
        return
    failures.mkdir(parents=True, exist_ok=True)
    (failures / f"{name}.svg").write_text(found, encoding="utf-8")
    rows = zip(_rows(expected), _rows(found), strict=False)
    different = next(((a, b) for a, b in rows if a != b), ("same text", "other colours or places"))
    raise AssertionError(
        f"{name} differs; see {failures / name}.svg\nexpected: {different[0]}\nfound:    "
        f"{different[1]}"
    )


def _picture(app: App[object]) -> str:
    return _normal(app.export_screenshot(title="qh-chat"))


def _normal(svg: str) -> str:
    """Without the checksum that Rich builds into every id, and trailing spaces."""
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _rows(svg: str) -> list[str]:
    """The visible text, one line a row of the screen."""
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg):
        rows.setdefault(float(y), []).append((float(x), html.unescape(text)))
    return ["".join(text for _, text in sorted(parts)) for _, parts in sorted(rows.items())]
