"""Makes chat.png: the real app with the real built-in model, driven as a person would.

    python packaging/screenshots/make.py

Nothing is drawn by hand: the questions below are typed, the answers and their speeds are what the
model gives on this machine, and the picture is the app's own SVG, made a PNG by rsvg-convert with
the font DejaVu Sans Mono. Look at it before it is committed.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from qh_chat.app import QhChatApp
from qh_chat.commands.chat import StoreModels
from qh_chat.loading import Models
from qh_chat.paths import app_paths
from qh_chat.settings import Settings
from qh_chat.shelf import Shelf

HERE = Path(__file__).resolve().parent
SIZE = (100, 30)
WIDTH_PIXELS = 1080
LIMIT_S = 60.0

CHATS = (
    ("Write a poem about cats.",),
    ("Why do birds sing?",),
    ("Can you help me?",),
    ("Who are you?", "Tell me a story about a fox."),
)
"""Questions of each chat, the one that stays open last."""

FONT = "DejaVu Sans Mono"
# The SVG sets cells 12.2 apart at a font size of 20; the advance of this font is 0.602 of its size.
FONT_SIZE = 12.2 / 0.602


async def scene(app: QhChatApp, pilot: Pilot[int]) -> str:
    """Chat, and return the screen as SVG."""
    await until(lambda: app.engine_info is not None)
    for number, questions in enumerate(CHATS):
        if number:
            await pilot.press("ctrl+n")
        for question in questions:
            app.chat.composer.put(question)
            await pilot.press("enter")
            await until(lambda: app.chat.answering or app.chat.composer.text == "")
            await until(lambda: not app.chat.answering)
    # The count of tokens comes a moment after the answer.
    await asyncio.sleep(1.0)
    await pilot.pause()
    return app.export_screenshot(title="qh-chat")


async def until(check: Callable[[], bool]) -> None:
    """Wait until something holds. Raises TimeoutError."""
    end = time.monotonic() + LIMIT_S
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(f"not true after {LIMIT_S} s")
        await asyncio.sleep(0.02)


async def drive(seed: int) -> str:
    """The scene in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        paths = app_paths({"QH_HOME": home})
        settings = Settings().with_value("look.blink", False)
        settings = settings.with_value("sampling.seed", seed)
        models, shelf = StoreModels(Models(paths)), Shelf(paths, {})
        app = QhChatApp(settings, paths.places, models, shelf, measure_memory=False)
        async with app.run_test(size=SIZE) as pilot:
            return await scene(app, pilot)


def for_rsvg(svg: str) -> str:
    """The same picture for a renderer without web fonts, that drops spaces unless it is told."""
    svg = svg.replace("<text ", '<text xml:space="preserve" ').replace("Fira Code", FONT)
    return svg.replace("font-size: 20px", f"font-size: {FONT_SIZE:.3f}px")


def main() -> None:
    """Write the PNG."""
    parser = argparse.ArgumentParser(description="Make the picture of the README.")
    parser.add_argument("--seed", type=int, default=7, help="of the answers (default: 7)")
    parser.add_argument("--out", type=Path, default=HERE / "chat.png")
    arguments = parser.parse_args()
    match = subprocess.run(
        ["fc-match", "-f", "%{family}", FONT], capture_output=True, text=True, check=True
    )
    if match.stdout != FONT:
        sys.exit(f"the font {FONT} is needed, fc-match found {match.stdout}: install fonts-dejavu")
    svg = for_rsvg(asyncio.run(drive(arguments.seed)))
    with tempfile.NamedTemporaryFile("w", suffix=".svg", encoding="utf-8") as file:
        file.write(svg)
        file.flush()
        subprocess.run(
            ["rsvg-convert", "-w", str(WIDTH_PIXELS), file.name, "-o", str(arguments.out)],
            check=True,
        )
    sys.stdout.write(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
