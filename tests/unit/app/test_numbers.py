"""Numbers as a person reads them, and the status line for every width."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qh_chat.widgets.numbers import answer_numbers, progress_text
from qh_chat.widgets.status_bar import Facts, status_content
from tests.support.chat_app import FIXED_STATS
from tests.support.fake_engine import fake_info


def test_the_numbers_of_an_answer_get_shorter_and_lose_the_rate_and_first_token_last() -> None:
    ways = answer_numbers(replace(FIXED_STATS, tokens=118), "other")
    assert ways == (
        "other · 31 tok/s · 118 tokens · first token 0.4 s",
        "31 tok/s · 118 tokens · first token 0.4 s",
        "31 tok/s · 118 tokens · first 0.4 s",
        "31 tok/s · first 0.4 s",
    )
    assert answer_numbers(replace(FIXED_STATS, tokens=0)) == ("0 tokens",)
    one = answer_numbers(replace(FIXED_STATS, tokens=1, tokens_per_s=0.0))
    assert one[0] == "1 token · first token 0.4 s"


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ((0, 0.0), "45.0 MB of 95.0 MB"),
        ((45_000_000, 0.1), "45.0 MB of 95.0 MB"),
        ((45_000_000, 1.5), "45.0 MB of 95.0 MB · 30.0 MB/s · 1.7 s left"),
    ],
)
def test_how_far_a_transfer_is(since: tuple[int, float], expected: str) -> None:
    assert progress_text(45_000_000, 95_000_000, *since) == expected


FACTS = Facts(
    info=fake_info("a-model-with-a-long-name", 8192), context_used=7900, left_out=12,
    tokens_per_s=31.2, first_token_s=0.4, rss_bytes=2_100_000_000,
)  # fmt: skip


def test_the_status_line_says_it_all_where_there_is_room() -> None:
    assert status_content(FACTS, 200).plain == (
        "a-model-with-a-long-name · ternary · CPU │ context 7,900 / 8,192 ▓▓▓▓▓▓▓▓ 12 left out │ "
        "31 tok/s · first token 0.4 s │ RAM 2.1 GB of 24.0 MB planned │ local"
    )


@pytest.mark.parametrize("width", range(8, 140))
def test_the_status_line_fits_every_width(width: int) -> None:
    line = status_content(FACTS, width)
    assert line.cell_length <= width
    if width >= 70:
        assert "7,900" in line.plain
        assert "31 tok/s" in line.plain
