"""The one status line: model, context, speed, memory, network; always true, cut to fit the width.

The text is made by a pure function of the facts and the width, so that tests and the screen agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from textual.app import RenderResult
from textual.content import Content
from textual.style import Style
from textual.widget import Widget

from qh_chat.inert import inert
from qh_chat.widgets.numbers import rate_text, seconds_text, size_text
from qh_runtime.session.events import EngineInfo

__all__ = ["Facts", "StatusBar", "status_content"]


@dataclass(frozen=True)
class Facts:
    """What the status line is made of; None is not known yet and is not shown.

    Attributes:
        loading: model name and progress text while one loads. failed: the load failed.
        context_used: tokens of the conversation and the draft, less what will be left out.
        left_out: messages that the model does not see any more.
        rss_bytes: what the process holds now.
        offline: this process refuses every network connection; otherwise the line only says that
            the answers are made on this machine.
        jobs: how far the fetch of a model is, in a few cells.
        history: "" when chats reach the disk, else a few words.
    """

    info: EngineInfo | None = None
    loading: str = ""
    failed: bool = False
    context_used: int | None = None
    left_out: int = 0
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    rss_bytes: int | None = None
    offline: bool = False
    jobs: str = ""
    history: str = ""

    def changed(self, **values: object) -> Facts:
        """A copy with some facts changed."""
        return replace(self, **values)  # type: ignore[arg-type]


def _bar(used: int, total: int, cells: int) -> str:
    filled = min(cells, round(cells * used / total)) if total else 0
    if used and not filled:
        filled = 1
    return "▓" * filled + "░" * (cells - filled)


def status_content(facts: Facts, width: int) -> Content:
    """The line, at most `width` cells wide: less important words go first, names are cut last."""
    for level in range(len(_CUTS) + 1):
        content = _assemble(facts, frozenset(_CUTS[:level]))
        if content.cell_length <= width:
            return content
    return content.truncate(max(1, width), ellipsis=True)


# What is left out, or said in fewer cells, in this order.
_CUTS = (
    "resident",
    "left out",
    "context",
    "planned",
    "first token",
    "bar",
    "device",
    "format",
    "memory",
    "jobs",
)


def _assemble(facts: Facts, cut: frozenset[str]) -> Content:
    parts = [_clickable(_model(facts, cut), "app.models")]
    if facts.jobs and "jobs" not in cut:
        parts.append(_clickable(Content.styled(inert(facts.jobs), "$text-accent"), "app.models"))
    context = _context(facts, cut)
    if context is not None:
        parts.append(_clickable(context, "screen.options"))
    if facts.tokens_per_s is not None:
        speed = rate_text(facts.tokens_per_s)
        if facts.first_token_s is not None and "first token" not in cut:
            speed += f" · first token {seconds_text(facts.first_token_s)}"
        parts.append(Content(speed))
    if facts.info is not None and "memory" not in cut:
        parts.append(_memory(facts, cut))
    if facts.history:
        parts.append(Content.styled(facts.history, "$text-warning"))
    where = ("offline", "$text-success") if facts.offline else ("local", "$foreground 60%")
    parts.append(Content.styled(*where))
    return Content.styled(" │ ", "$foreground 40%").join(parts)


def _clickable(content: Content, action: str) -> Content:
    return content.stylize(Style.from_meta({"@click": action}))


def _model(facts: Facts, cut: frozenset[str]) -> Content:
    info = facts.info
    words: list[str] = []
    if info is not None:
        words = [inert(info.name)]
        words += [info.format] if "format" not in cut else []
        words += [info.device] if "device" not in cut else []
    elif not facts.loading:
        words = ["no model (f3)"] if facts.failed else ["no model"]
    content = Content(" · ".join(inert(word) for word in words if word))
    if facts.loading:
        loading = Content.styled(inert(facts.loading), "$text-accent")
        content = Content.assemble(content, " → ", loading) if words else loading
    return content


def _context(facts: Facts, cut: frozenset[str]) -> Content | None:
    if facts.info is None:
        return None
    total, used = facts.info.context_length, facts.context_used or 0
    share = used / total if total else 0.0
    style = "$text-error" if share >= 0.95 else "$text-warning" if share >= 0.8 else ""
    short = "context" in cut
    text = f"{used:,}/{total:,}" if short else f"context {used:,} / {total:,}"
    cells = 3 if "bar" in cut else 5 if short else 8
    text = f"{text} {_bar(used, total, cells)}"
    if facts.left_out and "left out" not in cut:
        text += f" {facts.left_out:,} left out"
    return Content.styled(text, style)


def _memory(facts: Facts, cut: frozenset[str]) -> Content:
    assert facts.info is not None
    planned = size_text(facts.info.planned_bytes)
    if "planned" in cut:
        return Content(planned)
    if "resident" in cut or facts.rss_bytes is None:
        return Content(f"RAM {planned} planned")
    return Content(f"RAM {size_text(facts.rss_bytes)} of {planned} planned")


class StatusBar(Widget):
    """The line at the bottom, with the way to the help at its end.

    A click on the model, the context or the help opens what they are about.

    Args:
        facts: as they are at first.
    """

    HELP = "f1 help"

    def __init__(self, facts: Facts) -> None:
        super().__init__(id="status")
        # The colours of the line say how things are; links have none of their own here.
        self.auto_links = False
        self._facts = facts

    @property
    def facts(self) -> Facts:
        """What is shown."""
        return self._facts

    @facts.setter
    def facts(self, facts: Facts) -> None:
        if facts != self._facts:
            self._facts = facts
            self.refresh()

    def render(self) -> RenderResult:
        """The line, as wide as the widget."""
        width = self.size.width
        space = width - len(self.HELP) - 2
        content = status_content(self._facts, max(8, space))
        gap = max(1, width - content.cell_length - len(self.HELP))
        help_text = _clickable(Content.styled(self.HELP, "$foreground 60%"), "app.help")
        return Content.assemble(content, " " * gap, help_text)
