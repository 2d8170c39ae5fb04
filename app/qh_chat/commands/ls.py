"""`qh-chat ls`: the models that -m can name."""

from __future__ import annotations

import argparse
import json

from qh_chat.commands.context import Context
from qh_chat.inert import inert

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the models; exit code 0 also where some of them are broken."""
    entries = context.models(context.settings()).store().list()
    if args.json:
        rows = [
            {
                "name": x.name,
                "origin": x.origin,
                "model_type": x.model_type,
                "format": x.format,
                "file_bytes": x.file_bytes,
                "folder": str(x.folder),
                "problem": x.problem,
            }
            for x in entries
        ]
        print(json.dumps({"models": rows}, allow_nan=False))
        return 0
    width = max((len(x.name) for x in entries), default=4)
    for x in entries:
        state = x.problem or x.origin
        size = f"{x.file_bytes / 1e6:,.1f} MB" if x.file_bytes else "?"
        line = f"{x.name:{width}}  {x.model_type or '?':8} {x.format or '?':8} {size:>12}  {state}"
        print(inert(line.replace("\n", " ")))
    if not entries:
        print("no models: place a folder in Hugging Face layout in the models folder (see doctor)")
    return 0
