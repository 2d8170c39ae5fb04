"""The offer of `run`: a model of the hub that is not here yet is fetched, if a person says so."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from qh_chat.commands.context import Context
from qh_runtime.errors import ModelNotFoundError

if TYPE_CHECKING:
    from qh_chat.settings import Settings
    from qh_runtime.store.manifest import Manifest
    from qh_runtime.store.preflight import Preflight
    from qh_runtime.store.pull import PullEvent
    from qh_runtime.store.transfer import StopSignal

__all__ = ["offer_missing_model"]


def offer_missing_model(
    name: str | None, args: argparse.Namespace, context: Context, settings: Settings
) -> int:
    """Fetch a model that has a hub name and is not here, after a question; 0 where all is well.

    Where nobody can be asked nothing happens: the load refuses with the command to type.

    Returns:
        An exit code to end with, where the person declines or interrupts; else 0.
    """
    if name is None or "/" not in name or args.offline:
        return 0
    from qh_chat.commands.fetching import asks

    if not asks(yes=False, as_json=args.json) or not _is_wanted(name, context, settings):
        return 0
    from qh_chat.commands.fetch_output import fetch_output
    from qh_chat.commands.fetching import confirmation, run_fetch

    def fetch(
        stop: StopSignal,
        on_event: Callable[[PullEvent], None],
        ask: Callable[[Preflight], bool],
    ) -> Manifest | None:
        return context.shelf().pull(name, settings, stop, on_event, ask)

    confirm = confirmation(ask=True, force=args.force, show_card=True, verb="fetch")
    return run_fetch(fetch_output(context.environment, result=sys.stderr), fetch, confirm)


def _is_wanted(name: str, context: Context, settings: Settings) -> bool:
    """Whether it is a hub name of which nothing, or not everything, is here."""
    try:
        entry = context.models(settings).store().resolve(name)
    except ModelNotFoundError as error:
        return error.facts.get("hub_name") is True
    manifest = entry.manifest
    return manifest is not None and (manifest.state, manifest.origin) == ("pulling", "hub")
