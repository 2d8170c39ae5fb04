"""The picture of the README can still be made."""

from __future__ import annotations

import html
import runpy
from pathlib import Path

import pytest

MAKE = Path(__file__).resolve().parents[2] / "packaging" / "screenshots" / "make.py"


@pytest.mark.slow
async def test_the_scene_of_the_readme_plays_to_its_end() -> None:
    make = runpy.run_path(str(MAKE))
    svg = html.unescape(await make["drive"](7)).replace("\xa0", " ")
    for chat in make["CHATS"]:
        assert chat[0] in svg
    assert make["CHATS"][-1][1] in svg
    # The status bar has its own where there is room.
    assert svg.count(" tokens · first token ") == 2
    drawn = make["for_rsvg"](svg)
    assert "Fira Code" not in drawn
    assert f"font-size: {make['FONT_SIZE']:.3f}px" in drawn
