"""Pulls of org/model from the hub of the tests into a store of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, read_manifest
from qh_runtime.store.pull import (
    PullEvent,
    PullRequest,
    pull,
)
from qh_runtime.store.transfer import FetchOptions, StopSignal
from tests.support.hub_stub import HubStub

__all__ = ["FAST", "NAME", "Puller", "large_requests"]

FAST = FetchOptions(retry_delay_s=0.001, max_delay_s=0.01, tries=2)
NAME = "org/model"


class Puller:
    """Pulls org/model into one store and keeps what was said."""

    def __init__(self, hub: HubStub, layout: StoreLayout, profile: HardwareProfile) -> None:
        self.hub, self.layout, self.profile = hub, layout, profile
        self.events: list[PullEvent] = []

    def __call__(
        self,
        repo: str = NAME,
        *,
        at: Callable[[PullEvent], None] | None = None,
        stop: StopSignal | None = None,
        options: FetchOptions = FAST,
        confirm: Callable[[Any], bool] | None = None,
        **request: Any,
    ) -> Manifest | None:
        self.events = []
        self.hub.asked.clear()

        def on_event(event: PullEvent) -> None:
            self.events.append(event)
            if at is not None:
                at(event)

        asked = PullRequest(repo, endpoint=self.hub.endpoint, **request)
        return pull(
            asked, self.layout, options, self.profile,
            confirm=confirm, on_event=on_event, stop=stop,
        )  # fmt: skip

    def kinds(self) -> list[str]:
        """Kinds of events, repeats left out."""
        names = [type(x).__name__ for x in self.events]
        return [x for i, x in enumerate(names) if i == 0 or x != names[i - 1]]

    def manifest(self, name: str = NAME) -> Manifest | None:
        path = self.layout.manifest(name)
        return read_manifest(path) if path.exists() else None

    def content(self, name: str = NAME) -> dict[str, bytes]:
        """What the model's folder holds."""
        return {x.name: x.read_bytes() for x in self.layout.snapshot(name).iterdir()}


def large_requests(hub: HubStub) -> int:
    return sum(x.server == "content" for x in hub.asked)
