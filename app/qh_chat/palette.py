"""The palette's source: every action of the table that is marked for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from qh_chat.actions import ACTIONS, Action

__all__ = ["ActionProvider"]


class ActionProvider(Provider):
    """Finds actions by their title and help."""

    async def discover(self) -> Hits:
        """All of them, before anything is typed."""
        for action in ACTIONS:
            if action.palette:
                yield DiscoveryHit(_title(action), self._runner(action), help=action.help)

    async def search(self, query: str) -> Hits:
        """Those that match what is typed."""
        matcher = self.matcher(query)
        for action in ACTIONS:
            if not action.palette:
                continue
            score = matcher.match(f"{action.title} {action.help}")
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(_title(action)),
                    self._runner(action),
                    help=action.help,
                )

    def _runner(self, action: Action) -> Callable[[], Awaitable[bool]]:
        node = self.app if action.place == "app" else self.screen
        return partial(self.app.run_action, action.method, node)


def _title(action: Action) -> str:
    return action.title[0].upper() + action.title[1:]
