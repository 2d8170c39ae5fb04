"""What passed: one small JSON file per model, options, kernels and processor, in the cache folder.

    <key>.self-test.json    {"version": 2, "key": ..., "isa": ..., "notes": [...],
                             "source": ..., "folder": ..., "kernels": ...}

The last three are for `du` and `prune`, as those of a pack are: identity of the checkpoint, where
it was, and the build that computed. A file appears only when complete. One that is missing,
unreadable or of another version is no record, and the check runs again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "RECORD_ENDING",
    "Provenance",
    "Record",
    "find_record",
    "keep_record",
    "kernels_identity",
    "read_provenance",
    "record_key",
]

_log = logging.getLogger(__name__)

# Raised whenever the check finds more than before, or the file says more.
_VERSION = 2
_MAX_BYTES = 1 << 16
_MAX_NOTES, _MAX_NOTE_CHARS = 16, 1000

RECORD_ENDING = ".self-test.json"


@dataclass(frozen=True)
class Record:
    """A check that passed. isa: with this instruction set. notes: as for EngineInfo."""

    isa: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """Of what a record is: a checkpoint by its identity, its folder or "", and with which build."""

    source: str
    folder: str
    kernels: str


def record_key(parts: Sequence[object]) -> str:
    """Hex digest of everything that the outcome depends on; the parts' repr tells them apart."""
    text = repr((_VERSION, *parts))
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def kernels_identity() -> str:
    """What changes with every build of the native extension: its size, its time, its facts."""
    from qh_kernels import _native
    from qh_kernels.build_info import build_info

    status = os.stat(str(_native.__file__))
    return f"{status.st_size} {status.st_mtime_ns} {build_info()}"


def find_record(folder: Path, key: str) -> Record | None:
    """The record of this key, None where there is none that can be read."""
    data = _read(_path(folder, key))
    if data.get("version") != _VERSION or data.get("key") != key:
        return None
    isa, notes = data.get("isa"), data.get("notes")
    if not isinstance(isa, str) or not isinstance(notes, list) or len(notes) > _MAX_NOTES:
        return None
    if not all(isinstance(note, str) and len(note) <= _MAX_NOTE_CHARS for note in notes):
        return None
    return Record(isa, tuple(notes))


def read_provenance(path: Path) -> Provenance | None:
    """Of what the record in a file is; None where it cannot be read or is of another version."""
    data = _read(path)
    fields = [data.get(x) for x in ("source", "folder", "kernels")]
    if data.get("version") != _VERSION or not all(isinstance(x, str) for x in fields):
        return None
    return Provenance(*map(str, fields))


def keep_record(folder: Path, key: str, record: Record, of: Provenance) -> None:
    """Write the record, or log why it cannot be kept: the check then runs again the next time."""
    path = _path(folder, key)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    notes = [note[:_MAX_NOTE_CHARS] for note in record.notes[:_MAX_NOTES]]
    facts = {"version": _VERSION, "key": key, "isa": record.isa, "notes": notes}
    text = json.dumps({**facts, **asdict(of)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError as error:
        _log.warning("%s: the self-test's result is not kept: %s", path.name, error.strerror)
        with contextlib.suppress(OSError):
            part.unlink()


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is none."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}{RECORD_ENDING}"
