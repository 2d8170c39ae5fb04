"""The running jobs below the table of models: two rows each, with what can be done by the mouse.

The rows are made by pure functions of a job and the width, so that tests and the screen agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import RenderResult
from textual.content import Content
from textual.style import Style
from textual.widget import Widget

from qh_chat.inert import inert
from qh_chat.jobs import Job
from qh_chat.model_words import duration_text
from qh_chat.widgets.numbers import size_text

__all__ = ["JobLines", "job_rows", "job_share", "jobs_text", "state_text"]

SHOWN = 3
"""Jobs that are drawn; the rest is a number."""

_BAR = 20
_DOES = {
    "pull": "is being fetched",
    "import": "is being copied",
    "verify": "every byte is being read",
    "repair": "is being repaired",
    "source": "its source is being removed",
}
_STATES = {
    "pull": "fetching",
    "import": "copying",
    "verify": "checking",
    "repair": "repairing",
    "source": "checking",
}


def job_share(job: Job) -> str:
    """How far a job is, in per cent; never 100 before the end."""
    if not job.total_bytes:
        return ""
    return f"{min(99, 100 * job.done_bytes // job.total_bytes)} %"


def state_text(job: Job) -> str:
    """What the table says of a model with a running job."""
    words = {"looking": "looking", "asking": "asks you", "stopping": "stopping"}
    if job.state in words:
        return words[job.state]
    name = "waiting" if job.state == "waiting" else _STATES[job.kind]
    return f"{name} {job_share(job)}".rstrip()


def jobs_text(jobs: Sequence[Job]) -> str:
    """All jobs in a few cells, for the status line: the one that moves, else what waits."""
    for job in jobs:
        if job.state == "asking":
            return "card f3"
    for job in jobs:
        if job.state == "moving":
            return f"{'↓' if job.fetches or job.kind == 'repair' else '✓'} {job_share(job)}"
    return "↓ …" if jobs else ""


def job_rows(job: Job, width: int) -> list[Content]:
    """One job: what it does with its links, and how far it is."""
    return [_head(job, width), *([_progress(job, width)] if _has_progress(job) else [])]


def _has_progress(job: Job) -> bool:
    """Whether it has something to count; what waits for a word has not begun."""
    return job.total_bytes > 0 and job.state != "asking"


def _head(job: Job, width: int) -> Content:
    links = _links(job)
    name = Content.styled(inert(job.name), "bold")
    space = width - links.cell_length - 2
    text = Content.assemble(name, " ", Content.styled(inert(_what(job)), "$foreground 70%"))
    text = text.truncate(max(8, space), ellipsis=True)
    gap = max(2, width - text.cell_length - links.cell_length)
    return Content.assemble(text, " " * gap, links)


def _what(job: Job) -> str:
    if job.state == "asking":
        return "waits for your word"
    if job.state == "stopping":
        return "stops"
    if job.state == "waiting":
        return job.text or "waits"
    if job.state == "looking" or job.kind in ("repair", "source"):
        return job.text or _DOES[job.kind]
    return _DOES[job.kind]


def _links(job: Job) -> Content:
    if job.state == "stopping":
        return Content("")
    links = []
    if job.state == "asking":
        links.append(_link("card (enter)", f"screen.show_card({job.number})"))
    elif job.fetches and job.state in ("moving", "waiting"):
        links.append(_link("pause (space)", f"screen.pause_job({job.number})"))
    links.append(_link("stop (c)", f"screen.stop_job({job.number})"))
    return Content("  ").join(links)


def _link(text: str, action: str) -> Content:
    return Content.styled(text, "$text-accent").stylize(Style.from_meta({"@click": action}))


def _progress(job: Job, width: int) -> Content:
    """A bar, and in words as much as there is room for."""
    filled = min(_BAR, _BAR * job.done_bytes // job.total_bytes) if job.total_bytes else 0
    bar = Content.assemble(
        Content.styled("▓" * filled, "$text-accent"),
        Content.styled("░" * (_BAR - filled), "$foreground 40%"),
    )
    words = [f"{size_text(job.done_bytes)} of {size_text(job.total_bytes)}"]
    style = ""
    if job.fetches and job.state == "moving" and job.text:
        # Why nothing arrives just now.
        words = [job.text]
        style = "" if job.text == "checking" else "$text-warning"
    elif job.state == "moving":
        if job.bytes_per_s:
            words.append(f"{size_text(round(job.bytes_per_s))}/s")
        if job.left_s is not None:
            words.append(f"{duration_text(job.left_s)} left")
    text = Content.styled(inert(" · ".join(words)), style)
    row = Content.assemble(bar, f" {job_share(job):>4}  ", text)
    return row.truncate(max(8, width), ellipsis=True)


class JobLines(Widget):
    """The running jobs, the one that moves first; takes no room where there are none."""

    DEFAULT_CSS = "JobLines { height: auto; width: 1fr; }"

    def __init__(self) -> None:
        super().__init__(id="jobs")
        self.auto_links = False
        self._jobs: tuple[Job, ...] = ()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What is shown."""
        return self._jobs

    @jobs.setter
    def jobs(self, jobs: Sequence[Job]) -> None:
        before = self._rows_needed()
        self._jobs = tuple(sorted(jobs, key=lambda x: (x.state != "moving", x.number)))
        self.display = bool(self._jobs)
        self.refresh(layout=self._rows_needed() != before)

    def render(self) -> RenderResult:
        """Two rows for each of the first jobs."""
        rows = [row for job in self._jobs[:SHOWN] for row in job_rows(job, self.size.width)]
        more = len(self._jobs) - SHOWN
        if more > 0:
            rows.append(Content.styled(f"and {more} more", "$foreground 60%"))
        return Content("\n").join(rows)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """As many rows as are drawn."""
        return self._rows_needed()

    def _rows_needed(self) -> int:
        rows = sum(2 if _has_progress(job) else 1 for job in self._jobs[:SHOWN])
        return rows + (len(self._jobs) > SHOWN)
