"""`qh-chat prune`: what no model needs goes."""

from __future__ import annotations

import argparse
import json

from qh_chat.commands.context import Context
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_chat.model_words import left_over_lines
from qh_runtime.units import gigabytes

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Remove what is left over; exit code 0."""
    context.settings()
    done = context.shelf().prune(dry_run=args.dry_run)
    if args.json:
        facts = {"freed_bytes": done.freed_bytes, "dry_run": args.dry_run}
        print(json.dumps({**plain(done), **facts}, allow_nan=False))
        return 0
    for line in left_over_lines(done):
        print(inert(line))
    verb = "would be freed" if args.dry_run else "freed"
    print(f"{gigabytes(done.freed_bytes)} {verb}")
    return 0
