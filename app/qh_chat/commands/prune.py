"""`qh-chat prune`: what no model needs goes."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from qh_chat.commands.context import Context
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_runtime.units import gigabytes

__all__ = ["run"]

_WORDS = {
    "manifest": "manifests",
    "links": "folders of links",
    "blob": "files without a model",
    "part": "unfinished files that nobody goes on with",
    "pack": "packed weights without a model",
    "self-test": "self-tests of models that are gone",
    "lock": "locks that nobody holds",
    "temporary": "temporary files",
}


def run(args: argparse.Namespace, context: Context) -> int:
    """Remove what is left over; exit code 0."""
    context.settings()
    done = context.shelf().prune(dry_run=args.dry_run)
    if args.json:
        facts = {"freed_bytes": done.freed_bytes, "dry_run": args.dry_run}
        print(json.dumps({**plain(done), **facts}, allow_nan=False))
        return 0
    sizes: Counter[str] = Counter()
    for piece in done.pieces:
        sizes[piece.kind] += piece.bytes
    for kind, size in sizes.items():
        # Locks are empty files.
        if size:
            print(f"{gigabytes(size):>9}  {_WORDS[kind]}")
    for reason in done.kept:
        print(inert(f"kept: {reason}"))
    verb = "would be freed" if args.dry_run else "freed"
    print(f"{gigabytes(done.freed_bytes)} {verb}")
    return 0
