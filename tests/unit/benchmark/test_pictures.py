"""The plot has a point for every row, and the tables have a line."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from qh_chat.benchmark.plot import roofline_svg
from qh_chat.benchmark.rows import Row
from qh_chat.benchmark.table import markdown
from tests.support.bench_rows import ROOFLINE, a_row, peer_row

SVG = "{http://www.w3.org/2000/svg}"
LOAD = Row(
    "load", "builtin", "ternary", "avx2", 2,
    state="cold", start_to_first_token_s=0.35, rss_bytes=66_000_000, planned_bytes=62_000_000,
    rss_over_plan=1.06,
)  # fmt: skip


def of_class(tree: ET.Element, tag: str, name: str) -> list[ET.Element]:
    return [x for x in tree.iter(SVG + tag) if name in x.get("class", "").split()]


def test_a_point_for_every_row_and_its_peer() -> None:
    rows = [a_row("kernels"), peer_row(), a_row("prefill"), peer_row("prefill"), LOAD]
    tree = ET.fromstring(roofline_svg(rows, ROOFLINE, "a <title>"))
    assert len(of_class(tree, "circle", "row")) == 4
    assert len(of_class(tree, "path", "peer")) == 2
    assert tree.find(SVG + "title").text == "a <title>"  # type: ignore[union-attr]
    titles = [x.find(SVG + "title").text for x in of_class(tree, "circle", "row")]  # type: ignore[union-attr]
    assert titles[0] == "kernels llama <8b> int4_g32, avx512vnni, 2 threads: 10.2 tok/s"


def test_points_are_where_their_values_are() -> None:
    """Ten times the rate is as far up as ten times the intensity is to the right."""
    rows = [a_row(), a_row(tokens_per_s=102.5), a_row(bytes_per_token=400_000_000)]
    tree = ET.fromstring(roofline_svg(rows, ROOFLINE, ""))
    points = [
        (float(x.get("cx", "")), float(x.get("cy", ""))) for x in of_class(tree, "circle", "row")
    ]
    marks = {
        x.text: float(x.get("x", ""))
        for x in tree.iter(SVG + "text")
        if x.get("text-anchor") == "middle"
    }
    decade = marks["10"] - marks["1"]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 == x1
    assert y1 < y0
    assert abs((x2 - x0) - decade) < 0.5
    assert y2 == y0
    assert [x0, x2] == pytest.approx(
        [marks["1"] + decade * math.log10(x) for x in (1.75, 17.5)], abs=0.2
    )
    for x, y in points:
        assert 0 < x < 960
        assert 0 < y < 620


def test_a_picture_of_nothing_measured_is_one() -> None:
    ET.fromstring(roofline_svg([], {"read_bandwidth": [], "mac_peaks": []}, ""))
    ET.fromstring(roofline_svg([LOAD], ROOFLINE, ""))


def test_tables_have_a_line_for_every_row() -> None:
    rows = [a_row("kernels"), peer_row(), a_row(), a_row("prefill"), LOAD]
    text = markdown(rows, ROOFLINE)
    tables = [x.splitlines() for x in text.strip().split("\n\n")]
    assert [x[0].split()[1].rstrip(":") for x in tables] == [
        "limit", "kernels", "decode", "prefill", "load"
    ]  # fmt: skip
    assert [len(x) - 2 for x in tables] == [3, 1, 2, 1, 1]
    for table in tables:
        assert len({x.count("|") for x in table}) == 1, table[0]
    limits, kernels, decode, prefill, load = (x[2:] for x in tables)
    assert limits[1] == "| reading 512 MiB, GB/s | 30.0 (29.0-31.0) | 55.0 (40.0-60.0) |"
    assert "| 10.2 (9.0-11.0) | 4,000 | 41.0 | 74 % (70 %-80 %) |" in kernels[0]
    assert decode[0].endswith("| 256 | 5 % | llama.cpp Q4_0 5.0 | 4,400 | 2.05 (1.90-2.20) |")
    assert decode[1].endswith("| 256 | 5 % | – | – | – |")
    assert prefill[0].endswith("| 512 | `x<y>` | 50 % (70 %-80 %) |")
    assert load[0] == "| builtin | ternary | 2 | cold | 0.35 | 66 | 1.06 |"


def test_lines_for_people() -> None:
    assert "2.05x" in peer_row().line()
    assert "5% outside linears" in a_row().line()
    assert "50% of x<y>" in a_row("prefill").line()
    assert "0.35 s to the first token" in LOAD.line()
