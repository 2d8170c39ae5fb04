"""`qh-chat du`: what models take on the disk, and what removing them would free."""

from __future__ import annotations

import argparse
import json
import sys

from qh_chat.commands.context import Context
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_chat.wrapping import named_rows
from qh_runtime.store.disk import DiskUse
from qh_runtime.units import gigabytes

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the sums; exit code 0."""
    use = context.shelf().use(context.settings())
    if args.json:
        rows = [{**plain(x), "freed_bytes": x.freed_bytes} for x in use.models]
        print(json.dumps({**plain(use), "models": rows}, allow_nan=False))
        return 0
    for line in _lines(use):
        print(inert(line))
    return 0


def _lines(use: DiskUse) -> list[str]:
    rows: list[tuple[str, ...]] = [("model", "own", "shared", "packed", "rm frees")]
    for x in use.models:
        if x.state == "folder" and not x.packed_bytes:
            continue
        name = x.name if x.state in ("ready", "folder") else f"{x.name} ({_STATES[x.state]})"
        numbers = (x.own_bytes, x.shared_bytes, x.packed_bytes, x.freed_bytes)
        rows.append((name, *(gigabytes(n) if n else "-" for n in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    numbers_of = ("  ".join(f"{row[i]:>{widths[i]}}" for i in range(1, 5)) for row in rows)
    names = (row[0] for row in rows)
    lines = list(named_rows(list(zip(names, numbers_of, strict=True)), sys.stdout))
    lines.append("")
    lines.append(f"{gigabytes(use.total_bytes)} in all, {gigabytes(use.shared_bytes)} of it shared")
    if use.unfinished_bytes:
        lines.append(f"{gigabytes(use.unfinished_bytes)} in unfinished files; pull goes on")
    if use.other_packed_bytes:
        lines.append(f"{gigabytes(use.other_packed_bytes)} packed from folders elsewhere")
    if use.left_over_bytes:
        lines.append(f"{gigabytes(use.left_over_bytes)} left over; qh-chat prune frees them")
    return lines


_STATES = {"pulling": "incomplete", "damaged": "damaged"}
