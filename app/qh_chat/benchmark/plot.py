"""The roofline as a picture: what limits this machine, and where every row is below it.

Both axes are logarithmic: multiply-adds per byte of weights and cache to the right, multiply-adds
per second upwards. A sloped line is the read bandwidth, in the band of its spread over the run; a
level one is the peak of an instruction sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from qh_chat.benchmark.rows import Row

__all__ = ["roofline_svg"]

_WIDTH, _HEIGHT = 960, 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 230, 40, 60
# Told apart by most people; Source: Okabe and Ito, Color Universal Design, 2008; and three more.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#7a5195", "#4d4d4d", "#8c6d31"),
)
_KINDS = ("kernels", "decode", "prefill")
# Peaks that differ by less share a label.
_SAME = 1.05


@dataclass(frozen=True)
class _Point:
    """x: multiply-adds per byte; y: multiply-adds per second."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class _Axes:
    """Data coordinates to those of the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = math.log(value / self.x_low) / math.log(self.x_high / self.x_low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = math.log(value / self.y_low) / math.log(self.y_high / self.y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def roofline_svg(rows: Sequence[Row], roofline: Mapping[str, Any], title: str) -> str:
    """Return an SVG picture with one point for each row that has a rate, and one for its peer.

    Args:
        roofline: as in the report: "read_bandwidth" and "mac_peaks".
    """
    points = [(row, found) for row in rows if (found := _point(row)) is not None]
    peers = [(row, found) for row in rows if (found := _peer_point(row)) is not None]
    bandwidth = _largest_memory(roofline["read_bandwidth"])
    threads = {row.threads for row, _ in points} or set(bandwidth)
    peaks = _levels(x for x in roofline["mac_peaks"] if x["threads"] in threads)
    rates = [x for found in bandwidth.values() for x in found]
    axes = _axes([x for _, x in points + peers], rates, peaks)
    colours = {
        name: _COLOURS[i % len(_COLOURS)]
        for i, name in enumerate(dict.fromkeys(row.format for row, _ in points))
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 24, title, size=15),
        *_grid(axes),
        *_roofs(axes, bandwidth, peaks),
        *(_cross(axes, point, colours[row.format]) for row, point in peers),
        *(_dot(axes, row, point, colours[row.format]) for row, point in points),
        *_legend(colours, bool(peers)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _point(row: Row) -> _Point | None:
    if not row.tokens_per_s or not row.bytes_per_token or not row.macs_per_token:
        return None
    title = (
        f"{row.kind} {row.shape} {row.format}, {row.isa}, {row.threads} threads: "
        f"{row.tokens_per_s:.1f} tok/s"
    )
    macs = row.macs_per_token
    return _Point(macs / row.bytes_per_token, macs * row.tokens_per_s, title)


def _peer_point(row: Row) -> _Point | None:
    if not row.peer_tokens_per_s or not row.peer_bytes_per_token or not row.macs_per_token:
        return None
    title = f"{row.kind} {row.shape} {row.peer}: {row.peer_tokens_per_s:.1f} tok/s"
    macs = row.macs_per_token
    return _Point(macs / row.peer_bytes_per_token, macs * row.peer_tokens_per_s, title)


def _largest_memory(read: Sequence[Mapping[str, Any]]) -> dict[int, tuple[float, float, float]]:
    """Threads to (low, median, high) bytes per second, of the largest memory that was read."""
    most = max((x["bytes"] for x in read), default=0)
    return {
        int(x["threads"]): (
            float(x["spread"][0]) * 1e9,
            float(x["gb_per_s"]) * 1e9,
            float(x["spread"][1]) * 1e9,
        )
        for x in read
        if x["bytes"] == most
    }


def _levels(peaks: Iterable[Mapping[str, Any]]) -> dict[float, str]:
    """Multiply-adds per second to a label; sequences that are as fast as each other share one."""
    found: dict[float, str] = {}
    for x in sorted(peaks, key=lambda x: float(x["gmacs_per_s"])):
        rate = float(x["gmacs_per_s"]) * 1e9
        label = f"{x['name']}, {x['threads']} thr"
        same = next((old for old in found if rate < _SAME * old), None)
        if same is None:
            found[rate] = label
        else:
            found[same] += f"; {label}"
    return found


def _axes(points: Sequence[_Point], bandwidth: Sequence[float], peaks: Iterable[float]) -> _Axes:
    """Steps of 1, 2 and 5 around everything, with some room."""
    xs = [1.0, 100.0, *(x.x for x in points)]
    ys = [30e9, 300e9, *(x.y for x in points), *peaks, *bandwidth]
    x, y = _steps(min(xs) / 1.1, max(xs) * 1.1), _steps(min(ys) / 1.2, max(ys) * 1.2)
    return _Axes(x[0], x[-1], y[0], y[-1])


def _steps(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten: from the last up to low to the first from high on."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [m * 10.0**i for i in range(first, last + 1) for m in (1, 2, 5)]
    begin = max(i for i, step in enumerate(steps) if step <= low * 1.0001)
    end = min(i for i, step in enumerate(steps) if step >= high * 0.9999)
    return steps[begin : end + 1]


def _grid(axes: _Axes) -> list[str]:
    parts = []
    bottom = axes.y(axes.y_low)
    for x in _steps(axes.x_low, axes.x_high):
        at = axes.x(x)
        parts.append(_line(at, axes.y(axes.y_low), at, axes.y(axes.y_high), "#dddddd"))
        parts.append(_text(at, bottom + 18, f"{x:g}", anchor="middle"))
    for y in _steps(axes.y_low, axes.y_high):
        at = axes.y(y)
        parts.append(_line(axes.x(axes.x_low), at, axes.x(axes.x_high), at, "#dddddd"))
        parts.append(_text(_LEFT - 8, at + 4, f"{y / 1e9:g}", anchor="end"))
    middle = (axes.x(axes.x_low) + axes.x(axes.x_high)) / 2
    parts.append(_text(middle, bottom + 40, "multiply-adds per byte read", anchor="middle"))
    height = (axes.y(axes.y_low) + axes.y(axes.y_high)) / 2
    parts.append(
        f'<g transform="translate(24 {height:.1f}) rotate(-90)">'
        + _text(0, 0, "10⁹ multiply-adds per second", anchor="middle")
        + "</g>"
    )
    return parts


def _roofs(
    axes: _Axes,
    bandwidth: Mapping[int, tuple[float, float, float]],
    peaks: Mapping[float, str],
) -> list[str]:
    parts = []
    top = max(peaks, default=axes.y_high)

    def slope(rate: float) -> tuple[float, float, float, float] | None:
        """From where the line enters the picture to the highest peak."""
        left = max(axes.x_low, axes.y_low / rate)
        right = min(axes.x_high, top / rate)
        if right <= left:
            return None
        return axes.x(left), axes.y(left * rate), axes.x(right), axes.y(right * rate)

    for threads, (low, middle, high) in sorted(bandwidth.items()):
        least, ends, most = slope(low), slope(middle), slope(high)
        if least is None or ends is None or most is None:
            continue
        corners = [least[:2], least[2:], most[2:], most[:2]]
        band = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polygon points="{band}" fill="#777777" fill-opacity="0.15"/>')
        parts.append(_line(*ends))
        label = f"{middle / 1e9:.1f} GB/s, {threads} thr"
        parts.append(_text(ends[2] - 8, ends[3] + 4 + 14 * (len(parts) // 3), label, "end"))
    least_rate = max((x[1] for x in bandwidth.values()), default=1.0)
    for rate, label in peaks.items():
        left = axes.x(max(axes.x_low, rate / least_rate))
        right = axes.x(axes.x_high)
        if left < right:
            parts.append(_line(left, axes.y(rate), right, axes.y(rate), dash="4 3"))
            parts.append(_text(right - 4, axes.y(rate) - 4, label, "end", 10, "#555555"))
    return parts


def _dot(axes: _Axes, row: Row, point: _Point, colour: str) -> str:
    # Filled: kernels; a ring: decode; a ring around a dot would not be seen: prefill is smaller.
    fill = "#ffffff" if row.kind == "decode" else colour
    radius = 3.5 if row.kind == "prefill" else 5
    return (
        f'<circle class="row {escape(row.kind)}" cx="{axes.x(point.x):.1f}" '
        f'cy="{axes.y(point.y):.1f}" r="{radius}" fill="{fill}" stroke="{colour}" '
        f'stroke-width="2"><title>{escape(point.title)}</title></circle>'
    )


def _cross(axes: _Axes, point: _Point, colour: str) -> str:
    x, y = axes.x(point.x), axes.y(point.y)
    return (
        f'<path class="peer" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{colour}" '
        f'stroke-width="2" fill="none"><title>{escape(point.title)}</title></path>'
    )


def _legend(colours: Mapping[str, str], has_peers: bool) -> list[str]:
    left = _WIDTH - _RIGHT + 20
    parts = []
    at = _TOP + 10
    for name, colour in colours.items():
        parts.append(f'<rect x="{left}" y="{at - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + 18, at, name))
        at += 18
    at += 12
    grey = "#555555"
    for kind in _KINDS:
        fill = "#ffffff" if kind == "decode" else grey
        radius = 3.5 if kind == "prefill" else 5
        parts.append(
            f'<circle cx="{left + 5}" cy="{at - 4}" r="{radius}" fill="{fill}" stroke="{grey}" '
            'stroke-width="2"/>'
        )
        parts.append(_text(left + 18, at, kind))
        at += 18
    if has_peers:
        parts.append(
            f'<path d="M{left + 1} {at - 8}l8 8m0 -8l-8 8" stroke="{grey}" stroke-width="2"/>'
        )
        parts.append(_text(left + 18, at, "peer of that format"))
    return parts


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str = "#555555", dash: str = ""
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    size: int = 12,
    colour: str = "#000000",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor={quoteattr(anchor)} font-size="{size}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
