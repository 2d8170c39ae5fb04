"""`qh-chat import PATH`: a model that lies on this machine becomes one of the store."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from qh_chat.commands.arguments import load_overrides
from qh_chat.commands.context import Context
from qh_chat.commands.fetch_output import fetch_output
from qh_chat.commands.fetching import asks, confirmation, run_fetch
from qh_runtime.store.manifest import Manifest
from qh_runtime.store.preflight import Preflight
from qh_runtime.store.pull import PullEvent
from qh_runtime.store.transfer import StopSignal

__all__ = ["run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Import; exit code 0 once the model is ready."""
    settings = context.settings(load_overrides(args))
    output = fetch_output(context.environment, as_json=args.json)
    confirm = confirmation(
        ask=asks(yes=args.yes, as_json=args.json),
        force=args.force,
        show_card=not args.json,
        verb="copy",
    )

    def fetch(
        stop: StopSignal,
        on_event: Callable[[PullEvent], None],
        ask: Callable[[Preflight], bool],
    ) -> Manifest | None:
        path = Path(args.path)
        return context.shelf().copy(path, args.name or "", settings, stop, on_event, ask)

    return run_fetch(output, fetch, confirm, "nothing was copied")
