"""The one exception base of the project, at its lowest layer so that the app catches one type.

Every message has three parts: the object by name, expected versus found with units, and the next
step. Facts are kept as fields, because tests and the app read fields and never wording.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KernelError", "QhError"]


class QhError(Exception):
    """A failure that a person can act on.

    Args:
        message: names the object, what was expected and what was found.
        hint: the next step, or None where there is none.
        **facts: the values in the message, for callers and tests.
    """

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts: dict[str, Any] = facts

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"


class KernelError(QhError):
    """The native layer refused an argument: a wrong shape, size, format or instruction set."""
