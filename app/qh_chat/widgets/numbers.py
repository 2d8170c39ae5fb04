"""Numbers as a person reads them: one rule for bytes, tokens, rates, seconds and days."""

from __future__ import annotations

import time

from qh_runtime.session.events import GenerationStats

__all__ = ["answer_numbers", "day_name", "rate_text", "seconds_text", "size_text", "tokens_text"]


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


def tokens_text(tokens: int) -> str:
    """A count of tokens: 1,240."""
    return f"{tokens:,}"


def answer_numbers(stats: GenerationStats) -> str:
    """The line below an answer."""
    parts = [f"{tokens_text(stats.tokens)} token" + ("s" if stats.tokens != 1 else "")]
    if stats.tokens_per_s > 0:
        parts.insert(0, rate_text(stats.tokens_per_s))
    if stats.tokens:
        parts.append(f"first {seconds_text(stats.first_token_s)}")
    return " · ".join(parts)


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
