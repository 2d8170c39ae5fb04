"""`qh-chat ls`: the models that -m can name."""

from __future__ import annotations

import argparse
import json

from qh_chat.commands.context import Context
from qh_chat.inert import inert
from qh_runtime.store.store import ModelEntry

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the models; exit code 0 also where some of them are broken."""
    entries = context.models(context.settings()).store().list()
    if args.json:
        print(json.dumps({"models": [_row(x) for x in entries]}, allow_nan=False))
        return 0
    width = max((len(x.name) for x in entries), default=4)
    for x in entries:
        size = f"{x.file_bytes / 1e6:,.1f} MB" if x.file_bytes else "?"
        line = (
            f"{x.name:{width}}  {x.model_type or '?':8} {x.format or '?':8} {size:>12}  {_state(x)}"
        )
        print(inert(line.replace("\n", " ")))
    if not entries:
        print("no models: qh-chat pull ORG/MODEL fetches one, qh-chat import PATH copies one")
    return 0


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
