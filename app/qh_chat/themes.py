"""The two colour themes of the app; any theme of Textual can be chosen instead."""

from __future__ import annotations

from textual.theme import Theme

__all__ = ["DARK", "LIGHT"]


def _variables(primary: str, bar: str, hover: str, behind: str) -> dict[str, str]:
    return {
        "footer-key-foreground": primary,
        "block-cursor-text-style": "none",
        "scrollbar": bar,
        "scrollbar-hover": hover,
        "scrollbar-active": primary,
        "scrollbar-background": behind,
        "scrollbar-background-hover": behind,
        "scrollbar-background-active": behind,
        "scrollbar-corner-color": behind,
    }


DARK = Theme(
    name="qh-dark",
    primary="#7aa2f7",
    secondary="#9ece6a",
    accent="#e0af68",
    foreground="#d5d9e6",
    background="#14161d",
    surface="#1e212b",
    panel="#272b38",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    dark=True,
    variables=_variables("#7aa2f7", "#3a4052", "#565e77", "#1a1d26"),
)

LIGHT = Theme(
    name="qh-light",
    primary="#2f5fc4",
    secondary="#4b7a1f",
    accent="#9a5b00",
    foreground="#23262f",
    background="#fbfaf7",
    surface="#f0eee8",
    panel="#e4e1d8",
    success="#4b7a1f",
    warning="#9a5b00",
    error="#b3261e",
    dark=False,
    variables=_variables("#2f5fc4", "#c9c5b8", "#aaa698", "#f3f1ea"),
)
