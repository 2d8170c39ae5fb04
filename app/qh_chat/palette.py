"""The palette's source: every action of the table that is marked for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.dom import DOMNode

from qh_chat.actions import ACTIONS, Action, keys_text
from qh_chat.inert import inert
from qh_chat.screens.chat import ChatScreen
from qh_chat.settings import Settings
from qh_chat.widgets.transcript import Transcript

__all__ = ["ActionProvider"]


IN_DIALOGS = frozenset({"theme", "quit"})


class ActionProvider(Provider):
    """Finds actions by their title and help."""

    async def discover(self) -> Hits:
        """All of them, before anything is typed."""
        for action in self._offered():
            yield DiscoveryHit(self._title(action), self._runner(action), help=action.help)

    async def search(self, query: str) -> Hits:
        """Those that match what is typed."""
        matcher = self.matcher(query)
        for action in self._offered():
            score = matcher.match(f"{action.title} {action.help}")
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(self._title(action)),
                    self._runner(action),
                    help=action.help,
                )

    def _offered(self) -> Iterator[Action]:
        """Those that work from here: within a dialog, only what needs no chat."""
        in_chat = isinstance(self.screen, ChatScreen)
        for action in ACTIONS:
            if action.palette and (in_chat or action.id in IN_DIALOGS):
                yield action

    def _runner(self, action: Action) -> Callable[[], Awaitable[bool]]:
        node: DOMNode = self.app if action.place == "app" else self.screen
        if action.place == "transcript":
            node = self.screen.query_one(Transcript)
        return partial(self.app.run_action, action.method, node)

    def _title(self, action: Action) -> str:
        keys = inert(keys_text(action, self._rebound()))
        return action.title[0].upper() + action.title[1:] + (f"  ({keys})" if keys else "")

    def _rebound(self) -> Mapping[str, str]:
        settings = getattr(self.app, "settings", None)
        return settings.keys if isinstance(settings, Settings) else {}
