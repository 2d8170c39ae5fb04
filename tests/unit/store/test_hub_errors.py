"""Failures of the network in words: without numbers of the system, foreign texts in quotes."""

from __future__ import annotations

import pytest

from qh_runtime.store.hub_errors import hub_failure


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[Errno -2] Name or service not known", "not reached: Name or service not known"),
        ("[Errno 111] Connection refused", "not reached: Connection refused"),
        ("odd\x1b[31m", "not reached: 'odd"),
        ("", "not reached: 'ConnectionError'"),
    ],
)
def test_what_the_system_said_is_said_without_its_number(said: str, expected: str) -> None:
    error = hub_failure(ConnectionError(said), "org/model", "main", "https://hub.example")
    assert error.message.startswith(f"org/model: https://hub.example: {expected}")
    assert "\x1b" not in error.message
