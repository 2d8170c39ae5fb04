"""Numbers as a person reads them: one rule for bytes, tokens, rates, seconds and days."""

from __future__ import annotations

import time

from qh_runtime.session.events import GenerationStats

__all__ = [
    "answer_numbers",
    "day_name",
    "progress_text",
    "rate_text",
    "seconds_text",
    "size_text",
    "tokens_text",
]


def size_text(nbytes: int) -> str:
    """Bytes with a decimal unit: 3.6 MB, 2.1 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            value = nbytes / size
            return f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    return f"{nbytes} B"


def rate_text(tokens_per_s: float) -> str:
    """Tokens per second with two digits that mean something."""
    digits = 1 if tokens_per_s < 9.95 else 0
    return f"{tokens_per_s:,.{digits}f} tok/s"


def seconds_text(seconds: float) -> str:
    """A duration: 40 ms, 0.4 s, 12 s, 2 min 05 s."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def progress_text(done: int, total: int, since_done: int, since_s: float) -> str:
    """How far a transfer is: 45 MB of 95 MB · 30 MB/s · 2 s left.

    Args:
        since_done: bytes done within the last `since_s` seconds; what the rate is made of.
    """
    text = f"{size_text(done)} of {size_text(total)}"
    # Within the first moment a rate would be a guess.
    if since_s < 0.5 or since_done <= 0:
        return text
    rate = since_done / since_s
    return f"{text} · {size_text(round(rate))}/s · {seconds_text((total - done) / rate)} left"


def tokens_text(tokens: int) -> str:
    """A count of tokens: 1,240."""
    return f"{tokens:,}"


def answer_numbers(stats: GenerationStats, model: str = "") -> tuple[str, ...]:
    """The line below an answer, in ways that get shorter. `model` is named when it is given."""
    count = f"{tokens_text(stats.tokens)} token" + ("s" if stats.tokens != 1 else "")
    rate = [rate_text(stats.tokens_per_s)] if stats.tokens_per_s > 0 else []
    if not stats.tokens:
        return (count,)
    first = seconds_text(stats.first_token_s)
    ways = (
        *(([model, *rate, count, f"first token {first}"],) if model else ()),
        [*rate, count, f"first token {first}"],
        [*rate, count, f"first {first}"],
        [*rate, f"first {first}"],
    )
    return tuple(" · ".join(way) for way in ways)


def day_name(when: float, now: float) -> str:
    """The day of a moment as seen from now, in local time."""
    then, today = time.localtime(when), time.localtime(now)
    noon_then = time.mktime((*then[:3], 12, 0, 0, 0, 0, -1))
    noon_now = time.mktime((*today[:3], 12, 0, 0, 0, 0, -1))
    days = round((noon_now - noon_then) / 86_400)
    if days <= 0:
        return "Today"
    if days == 1:
        return "Yesterday"
    if days < 7:
        return "This week"
    return time.strftime("%B %Y", then)
