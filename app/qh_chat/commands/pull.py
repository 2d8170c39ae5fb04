"""`qh-chat pull REPO`: a model of the hub becomes one of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
    """Pull; exit code 0 once the model is ready."""
    overrides = {**load_overrides(args), "models.download_limit_mb_s": args.limit_rate}
    settings = context.settings(overrides)
    output = fetch_output(context.environment, as_json=args.json)
    confirm = confirmation(
        ask=asks(yes=args.yes, as_json=args.json),
        force=args.force,
        show_card=not args.json,
        verb="fetch",
    )

    def fetch(
        stop: StopSignal,
        on_event: Callable[[PullEvent], None],
        ask: Callable[[Preflight], bool],
    ) -> Manifest | None:
        return context.shelf().pull(
            args.repo,
            settings,
            stop,
            on_event,
            ask,
            artifact=args.artifact,
            newest=args.newest,
            endpoint=args.endpoint,
        )

    return run_fetch(output, fetch, confirm)
