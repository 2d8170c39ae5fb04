"""Every action of the app in one table: id, keys, where it works, what it says about itself.

The table feeds the bindings, the help screen and the palette. No default key is one that tmux,
screen or a shell commonly owns (ctrl+a b s q z c d).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding

__all__ = ["ACTIONS", "Action", "Place", "action_ids", "bindings_for", "keys_of", "keys_text"]

Place = Literal["app", "chat", "composer", "transcript", "chats", "models"]


@dataclass(frozen=True)
class Action:
    """One thing a person can do.

    Attributes:
        id: what the [keys] table of the settings names.
        keys: Textual key names with commas between. method: the action method of the place.
        title: two or three words. help: one line. palette: listed in the palette, too.
    """

    id: str
    keys: str
    place: Place
    method: str
    title: str
    help: str
    palette: bool = False
    priority: bool = False


ACTIONS: tuple[Action, ...] = (
    Action("help", "f1", "app", "help", "help", "Every key and what it does", True, True),
    Action("chats", "f2", "chat", "toggle_chats", "chats", "Show or hide the list of chats", True),
    Action("models", "f3", "app", "models", "models", "Choose a model", True, True),
    Action("pull", "", "app", "pull", "pull a model", "Fetch a model of the hub", True),
    Action("options", "f5", "chat", "options", "this chat",
           "System prompt and sampling of this chat", True),
    Action("settings", "f6", "app", "settings", "settings",
           "Settings for everything, kept in one file", True, True),
    Action("theme", "f7", "app", "toggle_dark", "light or dark", "Light or dark colours", True,
           True),
    Action("quit", "f10", "app", "quit", "quit", "Leave; everything is kept", True, True),
    Action("new", "ctrl+n", "chat", "new_chat", "new chat", "Start a new chat", True),
    Action("again", "ctrl+r", "chat", "regenerate", "again",
           "Answer once more; the earlier answer stays as an alternative", True),
    Action("stop", "escape", "chat", "stop", "stop",
           "Stop the answer and keep what is there; then go back", True),
    Action("editor", "ctrl+g", "chat", "editor", "$EDITOR", "Write the message in $EDITOR", True),
    Action("search", "ctrl+f", "chat", "search", "search", "Search in all chats", True,
           True),
    Action("rename", "f8", "chat", "rename", "rename",
           "Give this chat, or the one marked in the list, another title", True),
    Action("export_markdown", "", "chat", "export('md')", "export as Markdown",
           "Write this chat to a Markdown file", True),
    Action("export_json", "", "chat", "export('json')", "export as JSON",
           "Write this chat with all its branches to a JSON file", True),
    Action("delete_chat", "", "chat", "delete_chat", "delete chat", "Delete this chat", True),
    Action("send", "enter", "composer", "send", "send", "Send the message"),
    Action("newline", "ctrl+j,alt+enter,shift+enter", "composer", "newline", "newline",
           "Start a new line"),
    Action("down", "j,down", "transcript", "move(1)", "next message", "Select the next message"),
    Action("up", "k,up", "transcript", "move(-1)", "previous message",
           "Select the previous message"),
    Action("first", "g,home", "transcript", "first", "first message", "Go to the first message"),
    Action("last", "G,end", "transcript", "last", "last message", "Go to the last message"),
    Action("copy", "y", "transcript", "copy", "copy message",
           "Copy the selected message, or the last one", True),
    *(
        Action(f"copy_code_{n}", f"{n}", "transcript", f"copy_code({n})", f"copy code block {n}",
               f"Copy code block {n} of the selected message, or of the last one", n == 1)
        for n in range(1, 10)
    ),
    Action("edit", "e", "transcript", "edit", "edit and branch",
           "Edit the selected message of yours, or the last one; the old branch stays", True),
    Action("branch", "b", "transcript", "branch", "branch here",
           "Answer the selected turn once more"),
    Action("left", "left,h", "transcript", "sibling(-1)", "earlier alternative",
           "Show the alternative before this one"),
    Action("right", "right,l", "transcript", "sibling(1)", "later alternative",
           "Show the alternative after this one"),
    Action("thinking", "t", "transcript", "thinking", "thinking",
           "Fold or unfold what the model thought", True),
    Action("find", "slash", "transcript", "search", "search", "Search in all chats"),
    Action("write", "i", "transcript", "write", "write", "Back to the message box"),
    Action("models_pull", "p", "models", "pull", "pull",
           "Fetch a model of the hub: its card first, then your word"),
    Action("models_import", "i", "models", "import", "import",
           "Copy a model from a folder, a stick or a hub cache"),
    Action("models_pause", "space", "models", "pause", "pause or go on",
           "Pause what is fetched, or go on with it; it goes on in the next start, too"),
    Action("models_stop", "c", "models", "cancel", "stop",
           "Stop what runs for the marked model, or the load"),
    Action("models_verify", "v", "models", "verify", "verify",
           "Read every byte of the model, and offer a repair"),
    Action("models_remove", "x,delete", "models", "remove", "remove",
           "Remove the model; says first what is freed"),
    Action("models_disk", "u", "models", "disk", "disk", "What frees how much"),
    Action("models_open", "o", "models", "open", "other folder",
           "Name a folder that is a model, or that holds models"),
    Action("models_refresh", "r", "models", "refresh", "look again", "Look for models again"),
    Action("models_down", "j", "models", "down", "next model", "Mark the next model (also ↓)"),
    Action("models_up", "k", "models", "up", "previous model",
           "Mark the previous model (also ↑)"),
    Action("list_down", "j", "chats", "cursor_down", "next chat", "Mark the next chat (also ↓)"),
    Action("list_up", "k", "chats", "cursor_up", "previous chat",
           "Mark the previous chat (also ↑)"),
    Action("list_search", "slash", "chats", "find", "search", "Search in titles and messages"),
    Action("list_rename", "r", "chats", "rename", "rename", "Give the marked chat another title"),
    Action("list_delete", "d,delete", "chats", "delete", "delete", "Delete the marked chat"),
)  # fmt: skip


def action_ids() -> frozenset[str]:
    """Ids that the [keys] table may name."""
    return frozenset(action.id for action in ACTIONS)


def bindings_for(place: Place) -> list[Binding]:
    """Bindings of a place, rebindable by id."""
    return [
        Binding(
            action.keys,
            action.method,
            action.title,
            show=False,
            tooltip=action.help,
            id=action.id,
            priority=action.priority,
        )
        for action in ACTIONS
        if action.place == place and action.keys
    ]


def keys_of(action_id: str, rebound: Mapping[str, str]) -> frozenset[str]:
    """Textual names of the keys of an action. Raises KeyError."""
    table = {action.id: action.keys for action in ACTIONS}
    keys = rebound.get(action_id, table[action_id])
    return frozenset(key.strip() for key in keys.split(",") if key.strip())


def keys_text(action: Action, keys: Mapping[str, str] | None = None) -> str:
    """The keys of an action as a person reads them."""
    found = (keys or {}).get(action.id, action.keys)
    names = {"escape": "esc", "slash": "/", "left": "←", "right": "→", "up": "↑", "down": "↓"}
    return " ".join(names.get(key.strip(), key.strip()) for key in found.split(",") if key)
