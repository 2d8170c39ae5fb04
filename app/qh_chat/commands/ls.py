"""`qh-chat ls`: the models that -m can name."""

from __future__ import annotations

import argparse
import json
import sys

from qh_chat.commands.context import Context
from qh_chat.inert import inert
from qh_chat.wrapping import named_rows
from qh_runtime.store.store import ModelEntry

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the models; exit code 0 also where some of them are broken."""
    entries = context.models(context.settings()).store().list()
    if args.json:
        print(json.dumps({"models": [_row(x) for x in entries]}, allow_nan=False))
        return 0
    for line in named_rows([(x.name, _facts(x)) for x in entries], sys.stdout):
        print(inert(line.replace("\n", " ")))
    if not entries:
        print("no models: qh-chat pull ORG/MODEL fetches one, qh-chat import PATH copies one")
    return 0


def _facts(entry: ModelEntry) -> str:
    size = f"{entry.file_bytes / 1e6:,.1f} MB" if entry.file_bytes else "?"
    kind = f"{entry.model_type or '?':8} {entry.format or '?':8}"
    return f"{kind} {size:>12}  {_state(entry)}"


def _state(entry: ModelEntry) -> str:
    if entry.problem is not None:
        return entry.problem
    dropped = entry.manifest is not None and entry.manifest.dropped
    return f"{entry.origin}, packed form only" if dropped else entry.origin


def _row(entry: ModelEntry) -> dict[str, object]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "origin": entry.origin,
        "model_type": entry.model_type,
        "format": entry.format,
        "file_bytes": entry.file_bytes,
        "done_bytes": entry.done_bytes if manifest else entry.file_bytes,
        "state": manifest.state if manifest else "broken" if entry.problem else "ready",
        "source_dropped": manifest is not None and manifest.dropped,
        "folder": str(entry.folder),
        "problem": entry.problem,
    }
