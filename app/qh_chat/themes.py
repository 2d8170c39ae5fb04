"""The two colour themes of the app; any theme of Textual can be chosen instead."""

from __future__ import annotations

from textual.theme import Theme

__all__ = ["DARK", "LIGHT"]

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
    variables={"footer-key-foreground": "#7aa2f7", "block-cursor-text-style": "none"},
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
    variables={"footer-key-foreground": "#2f5fc4", "block-cursor-text-style": "none"},
)
