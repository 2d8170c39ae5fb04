"""`qh-chat pull REPO`: a model of the hub becomes one of this machine."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from qh_chat.commands.context import Context
from qh_chat.commands.fetch_output import fetch_output
from qh_chat.commands.fetching import asks, confirmation, run_fetch
from qh_chat.commands.stored import quota_bytes, stored_manifest, transfer_options
from qh_chat.offline import OfflineError
from qh_runtime.store.manifest import Manifest
from qh_runtime.store.preflight import Preflight
from qh_runtime.store.pull import PullEvent, PullRequest, pull
from qh_runtime.store.transfer import StopSignal

if TYPE_CHECKING:
    from qh_chat.settings import Settings

__all__ = ["fetch_from_hub", "require_network", "run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Pull; exit code 0 once the model is ready."""
    require_network("pull", offline=args.offline)
    overrides = {"models.pack": args.pack, "models.context_length": args.context}
    settings = context.settings({**overrides, "models.download_limit_mb_s": args.limit_rate})
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
        return fetch_from_hub(
            args.repo,
            context,
            settings,
            stop,
            on_event,
            ask,
            artifact=args.artifact,
            newest=args.newest,
            endpoint=args.endpoint,
        )

    return run_fetch(output, fetch, confirm)


def fetch_from_hub(
    name: str,
    context: Context,
    settings: Settings,
    stop: StopSignal,
    on_event: Callable[[PullEvent], None],
    confirm: Callable[[Preflight], bool],
    *,
    artifact: str | None = None,
    newest: bool = False,
    endpoint: str | None = None,
) -> Manifest | None:
    """Pull `org/model@revision:artifact`, most of it optional.

    Args:
        artifact: instead of what the name says.
        endpoint: another hub than that of HF_ENDPOINT, or of an earlier pull of this name.
    """
    models = context.models(settings)
    rest, _, in_name = name.partition(":")
    repo, _, revision = rest.partition("@")
    request = PullRequest(
        repo=repo,
        revision=revision,
        artifact=in_name if artifact is None else artifact,
        newest=newest,
        load=settings.load_options(),
        quota_bytes=quota_bytes(settings),
        endpoint=endpoint,
    )
    if endpoint is None and not context.environment.get("HF_ENDPOINT"):
        there = stored_manifest(models.layout(), request.name)
        if there is not None and there.origin == "hub":
            request = dataclasses.replace(request, endpoint=there.endpoint)
    return pull(
        request,
        models.layout(),
        transfer_options(settings),
        models.profile(),
        confirm=confirm,
        on_event=on_event,
        stop=stop,
    )


def require_network(what: str, *, offline: bool) -> None:
    """Return normally if this command may reach the network.

    Raises:
        OfflineError: --offline was given. Facts: event.
    """
    if offline:
        raise OfflineError(
            f"{what}: needs the network, which --offline refuses",
            hint="leave --offline out to allow it",
            event=what,
        )
