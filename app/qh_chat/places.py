"""The files the app uses, as one value that is handed to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Places"]


@dataclass(frozen=True)
class Places:
    """Where things are kept.

    Attributes:
        settings: the TOML file. history: the SQLite file. exports: folder of exported chats.
        last_copy: the last copied text, for terminals without a clipboard. log: the log file.
    """

    settings: Path
    history: Path
    exports: Path
    last_copy: Path
    log: Path

    @classmethod
    def below(cls, config: Path, data: Path, cache: Path) -> Places:
        """The usual names in the three folders of the app."""
        return cls(
            settings=config / "settings.toml",
            history=data / "history" / "history.db",
            exports=data / "exports",
            last_copy=cache / "last-copy.txt",
            log=data / "logs" / "qh-chat.log",
        )
