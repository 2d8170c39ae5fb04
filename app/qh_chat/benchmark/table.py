"""Rows as Markdown tables, one for each kind, ready for kernels/README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qh_chat.benchmark.rows import Row

__all__ = ["markdown"]

_MISSING = "–"


def markdown(rows: Sequence[Row], roofline: Mapping[str, Any]) -> str:
    """Return the tables: limits first, then each kind of rows that there is."""
    parts = [_limits(roofline)]
    for kind, one_table in (
        ("kernels", _bandwidth_table),
        ("decode", _bandwidth_table),
        ("prefill", _peak_table),
        ("load", _load_table),
    ):
        found = [row for row in rows if row.kind == kind]
        if found:
            parts.append(one_table(found))
    return "\n\n".join(parts) + "\n"


def _limits(roofline: Mapping[str, Any]) -> str:
    read = roofline["read_bandwidth"]
    threads = sorted({x["threads"] for x in [*read, *roofline["mac_peaks"]]})
    lines = []
    for size in sorted({x["bytes"] for x in read}):
        found = {
            x["threads"]: _range(x["gb_per_s"], x["spread"]) for x in read if x["bytes"] == size
        }
        lines.append([f"reading {_size(size)}, GB/s", *(found.get(x, _MISSING) for x in threads)])
    for name in dict.fromkeys(x["name"] for x in roofline["mac_peaks"]):
        found = {
            x["threads"]: f"{x['gmacs_per_s']:,.0f}"
            for x in roofline["mac_peaks"]
            if x["name"] == name
        }
        lines.append([f"`{name}`, Gmac/s", *(found.get(x, _MISSING) for x in threads)])
    return _table(["limit", *(f"{x} threads" for x in threads)], lines)


def _bandwidth_table(rows: Sequence[Row]) -> str:
    head = ["shape", "format", "ISA", "threads", "tok/s (spread)", "MB/token", "GB/s"]
    head += ["of bandwidth (spread)"]
    extra = []
    if any(row.context is not None for row in rows):
        extra += ["context", "outside linears"]
    if any(row.peer is not None for row in rows):
        extra += ["peer tok/s", "peer MB/token", "ratio (spread)"]
    lines = []
    for row in rows:
        line = [*_first(row), _number((row.bytes_per_token or 0) / 1e6)]
        line += [_number(row.gb_per_s), _percents(row.fraction_of_bandwidth, row.fraction_spread)]
        if "context" in extra:
            outside = None if row.linear_fraction is None else 1 - row.linear_fraction
            line += [_MISSING if row.context is None else f"{row.context:,}", _percent(outside)]
        if "peer tok/s" in extra:
            line += _peer(row)
        lines.append(line)
    return _table([rows[0].kind + ": " + head[0], *head[1:], *extra], lines)


def _peak_table(rows: Sequence[Row]) -> str:
    head = ["prefill: shape", "format", "ISA", "threads", "tok/s (spread)", "prompt", "limit"]
    head += ["of it (spread)"]
    has_peer = any(row.peer is not None for row in rows)
    if has_peer:
        head += ["peer tok/s", "peer MB/token", "ratio (spread)"]
    lines = []
    for row in rows:
        line = [*_first(row), f"{row.tokens}", _MISSING if row.peak is None else f"`{row.peak}`"]
        line.append(_percents(row.fraction_of_peak, row.fraction_spread))
        lines.append(line + (_peer(row) if has_peer else []))
    return _table(head, lines)


def _load_table(rows: Sequence[Row]) -> str:
    head = ["load: shape", "format", "threads", "state", "s to the first token"]
    head += ["memory, MB", "over the plan"]
    lines = [
        [
            row.shape,
            row.format,
            str(row.threads),
            row.state or _MISSING,
            f"{row.start_to_first_token_s or 0:.2f}",
            f"{(row.rss_bytes or 0) / 1e6:,.0f}",
            f"{row.rss_over_plan or 0:.2f}",
        ]
        for row in rows
    ]
    return _table(head, lines)


def _first(row: Row) -> list[str]:
    """What every table of rates begins with."""
    rate = _range(row.tokens_per_s, row.spread)
    return [row.shape, row.format, row.isa, str(row.threads), rate]


def _peer(row: Row) -> list[str]:
    if row.peer is None:
        return [_MISSING] * 3
    return [
        f"{row.peer} {_number(row.peer_tokens_per_s)}",
        _number((row.peer_bytes_per_token or 0) / 1e6),
        _range(row.ratio, row.ratio_spread, digits=2),
    ]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in rows)


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20:,} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10:,} KiB"


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _range(value: float | None, low_high: Sequence[float] | None, digits: int = 1) -> str:
    if value is None:
        return _MISSING
    if digits != 1:
        text = f"{value:.{digits}f}"
        return text if low_high is None else f"{text} ({low_high[0]:.2f}-{low_high[1]:.2f})"
    if low_high is None:
        return _number(value)
    return f"{_number(value)} ({_number(low_high[0])}-{_number(low_high[1])})"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.0%}".replace("%", " %")


def _percents(value: float | None, low_high: Sequence[float] | None) -> str:
    if value is None or low_high is None:
        return _percent(value)
    return f"{value:.0%} ({low_high[0]:.0%}-{low_high[1]:.0%})".replace("%", " %")
