"""`qh-chat rm NAME`: a model goes; or its packed form, or the weights that this stands for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

from qh_chat.commands.context import Context
from qh_chat.commands.fetch_output import ProgressLine, to_stderr
from qh_chat.commands.fetching import EXIT_DECLINED, Interrupts, asks, question
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_chat.model_words import DROP_STAGES, dropped_text, removal_text
from qh_runtime.errors import StoreError
from qh_runtime.store.disk import Removal
from qh_runtime.store.transfer import StopSignal
from qh_runtime.units import gigabytes

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Remove; exit code 0 once it is gone."""
    shelf, settings = context.shelf(), context.settings()
    remove: Callable[..., Removal]
    if args.packed:
        remove, what = partial(shelf.remove_packed, args.name, settings), ": its packed form"
    else:
        name = shelf.stored(args.name, settings, "removed").name
        if args.source:
            return _drop_source(args, context, name)
        remove, what = partial(shelf.remove, name), ""
    planned = remove(dry_run=True)
    if args.dry_run:
        _print(planned, f"{what} would be removed", as_json=args.json)
        return 0
    if not _agreed(args, f"{removal_text(planned)}\nremove it?"):
        return EXIT_DECLINED
    _print(remove(), f"{what} is removed", as_json=args.json)
    return 0


def _agreed(args: argparse.Namespace, text: str) -> bool:
    """Whether to go on; without a person only with --yes."""
    if args.yes:
        return True
    if not asks(yes=args.yes, as_json=args.json):
        raise StoreError(
            f"model {args.name}: expected a yes, and there is nobody to ask",
            hint="add --yes",
            name=args.name,
        )
    if question(text):
        return True
    to_stderr("qh-chat: nothing was removed")
    return False


def _drop_source(args: argparse.Namespace, context: Context, name: str) -> int:
    from qh_runtime.store.dropping import DropProgress

    if not _agreed(
        args, f"{name}: its weights go, the packed form stays and stands for them. Go on?"
    ):
        return EXIT_DECLINED
    line = ProgressLine(context.environment)

    def show(progress: DropProgress) -> None:
        if DROP_STAGES[progress.stage] and not args.json:
            done, total = gigabytes(progress.done_bytes), gigabytes(progress.total_bytes)
            line.show(f"{DROP_STAGES[progress.stage]}: {done} of {total}")

    stop = StopSignal()
    with Interrupts(stop) as interrupts:
        interrupts.raising = False
        done = context.shelf().drop_source(name, args.pack, show, stop)
    line.clear()
    if done is None:
        to_stderr("qh-chat: stopped; nothing was removed")
        return interrupts.exit_code
    if args.json:
        facts = {"pack_format": done.pack_format, "freed_bytes": done.freed_bytes}
        print(json.dumps({"name": name, **facts, "model": plain(done.manifest)}, allow_nan=False))
    else:
        print(inert(dropped_text(name, done.pack_format, done.freed_bytes)))
    return 0


def _print(removal: Removal, outcome: str, *, as_json: bool) -> None:
    if as_json:
        facts = plain(removal)
        print(json.dumps({**facts, "freed_bytes": removal.freed_bytes}, allow_nan=False))
    else:
        print(inert(f"{removal.name}{outcome}: {gigabytes(removal.freed_bytes)} freed"))
