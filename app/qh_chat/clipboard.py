"""Copies text where the person can paste it, and says where that is.

Only ever called for a key press or a click: the terminal's clipboard (OSC 52) crosses SSH, a
system tool covers terminals that ignore it, and a file is there when neither can be relied on.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from qh_chat.inert import inert

__all__ = ["copy_text"]

log = logging.getLogger(__name__)

TOOLS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("WAYLAND_DISPLAY", ("wl-copy",), "Wayland clipboard"),
    ("DISPLAY", ("xclip", "-selection", "clipboard"), "X clipboard"),
    ("DISPLAY", ("xsel", "--clipboard", "--input"), "X clipboard"),
    ("", ("pbcopy",), "system clipboard"),
    ("", ("clip.exe",), "Windows clipboard"),
)
TIMEOUT_S = 2.0


def copy_text(
    text: str, osc52: Callable[[str], None], fallback: Path, environment: Mapping[str, str]
) -> str:
    """Copy text, made inert, and return where it went in a few words.

    Args:
        text: what is copied. osc52: writes it to the terminal's clipboard.
        fallback: file that is written when no system tool took it.
        environment: usually os.environ; decides which tools can work.
    """
    safe = inert(text)
    osc52(safe)
    places = ["terminal clipboard"]
    tool = next((name for name in _tools(environment) if _run(name[0], safe)), None)
    if tool is not None:
        places.append(tool[1])
    else:
        try:
            fallback.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(fallback, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(safe)
            places.append(str(fallback))
        except OSError as error:
            log.warning("copy not written to %s: %s", fallback, error)
    return " and ".join(places)


def _tools(environment: Mapping[str, str]) -> list[tuple[list[str], str]]:
    found = []
    for variable, command, name in TOOLS:
        path = shutil.which(command[0], path=environment.get("PATH"))
        if path is not None and (not variable or environment.get(variable)):
            found.append(([path, *command[1:]], name))
    return found


def _run(command: list[str], text: str) -> bool:
    try:
        subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info("%s did not take the copy: %s", command[0], error)
        return False
    return True
