"""File names from strangers: what may become a name on this disk."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import StoreError

__all__ = ["check_file_name", "check_file_names"]

MAX_PARTS = 4
MAX_BYTES = 240
MAX_FILES = 20_000
# Letters and digits of any script would need normalization; repositories of models do not use them.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*")
# Names that mean a device on Windows, whatever follows the first dot.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def check_file_name(name: str) -> str:
    """Return a name that stays inside its folder on every platform.

    Relative, of plain characters, no part that starts or ends with a dot.

    Raises:
        StoreError: any other name. Facts: file.
    """
    parts = name.split("/") if isinstance(name, str) else []
    sound = (
        1 <= len(parts) <= MAX_PARTS
        and len(name) <= MAX_BYTES
        and all(_PART.fullmatch(x) and x[-1] != "." and not _DEVICES.fullmatch(x) for x in parts)
    )
    if not sound:
        raise StoreError(
            f"file name {quoted(name)}: expected a plain relative name",
            hint="do not use this repository; its file names are unsafe",
            file=quoted(name),
        )
    return name


def check_file_names(names: Iterable[str]) -> None:
    """Return normally if all names are sound and stay apart where case does not count.

    A name that is also the folder of another one is refused.

    Raises:
        StoreError: facts file.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for count, name in enumerate(names):
        folded = check_file_name(name).casefold()
        if count >= MAX_FILES or folded in seen:
            raise StoreError(
                f"file name {quoted(name)}: there twice, or one of more than {MAX_FILES}",
                hint="do not use this repository",
                file=quoted(name),
            )
        seen.add(folded)
        parts = folded.split("/")
        folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    clash = seen & folders
    if clash:
        raise StoreError(
            f"file name {quoted(min(clash))}: expected a file or a folder, found both",
            hint="do not use this repository",
            file=quoted(min(clash)),
        )
