"""The whole profile: plain data, provenance everywhere, no card is a reason and not a crash."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import HardwareError
from qh_runtime.hardware.disk import read_disk
from qh_runtime.hardware.gpu import read_gpus
from qh_runtime.hardware.profile import probe
from tests.support.recorded_machine import MEMINFO, write_tree


def facts_in(value: Any) -> list[dict[str, Any]]:
    """Every {"value", "source"} in a tree of plain data."""
    if isinstance(value, dict):
        if set(value) == {"value", "source"}:
            return [value, *facts_in(value["value"])]
        return [fact for item in value.values() for fact in facts_in(item)]
    if isinstance(value, list | tuple):
        return [fact for item in value for fact in facts_in(item)]
    return []


def test_every_fact_says_where_it_came_from(tmp_path: Path) -> None:
    plain = json.loads(json.dumps(probe(tmp_path).to_dict(), allow_nan=False))
    facts = facts_in(plain)
    assert len(facts) > 15
    assert all(isinstance(fact["source"], str) and fact["source"] for fact in facts)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    profile = probe(tmp_path, write_tree(tmp_path, {"/proc/cpuinfo": ""}))
    assert profile.usable_threads >= 1
    with pytest.raises(HardwareError) as caught:
        _ = profile.usable_bytes
    assert caught.value.facts["fact"] == "usable_bytes"


def test_usable_bytes(tmp_path: Path) -> None:
    profile = probe(tmp_path, write_tree(tmp_path, {"/proc/meminfo": MEMINFO}))
    assert profile.usable_bytes == 12_000_000 << 10


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    fact = read_disk(tmp_path / "not" / "yet")
    assert fact.value is not None
    assert 0 < fact.value.free_bytes <= fact.value.total_bytes


class _NvmlError(Exception):
    pass


def _bindings(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("pynvml")
    module.__dict__.update(NVMLError=_NvmlError, nvmlShutdown=lambda: None, **functions)
    return module


def test_no_driver_is_none_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise _NvmlError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "pynvml", _bindings(nvmlInit=fail))
    fact = read_gpus()
    assert fact.value is None
    assert "NVML Shared Library Not Found" in fact.source


def test_recorded_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _bindings(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"570.1",
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda card: types.SimpleNamespace(total=24 << 30, free=card << 30),
        nvmlDeviceGetName=lambda card: f"Card {card}",
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    cards = read_gpus().value
    assert cards is not None
    assert [(x.name, x.free_bytes >> 30, x.driver) for x in cards] == [
        ("Card 0", 0, "570.1"),
        ("Card 1", 1, "570.1"),
    ]


def test_a_card_that_fails_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(index: int) -> None:
        raise _NvmlError("GPU is lost")

    module = _bindings(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lost,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    fact = read_gpus()
    assert fact.value is None
    assert "GPU is lost" in fact.source
