"""Memory facts of recorded /proc files, and of this machine beside psutil."""

from __future__ import annotations

from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from qh_runtime.hardware.memory import read_memory
from tests.support.recorded_machine import AVAILABLE_BYTES, MEMINFO, write_tree


def test_meminfo_is_read_in_bytes(tmp_path: Path) -> None:
    memory = read_memory(write_tree(tmp_path, {"/proc/meminfo": MEMINFO}))
    assert memory.total_bytes.value == 16_384_000 << 10
    assert memory.available_bytes.value == AVAILABLE_BYTES
    assert memory.available_bytes.source == "/proc/meminfo MemAvailable"
    assert memory.swap_free_bytes.value == 1_500_000 << 10
    assert memory.usable_bytes.value == AVAILABLE_BYTES


def test_old_kernels_without_memavailable(tmp_path: Path) -> None:
    text = "".join(x for x in MEMINFO.splitlines(True) if "MemAvailable" not in x)
    memory = read_memory(write_tree(tmp_path, {"/proc/meminfo": text}))
    assert memory.available_bytes.value == (8_000_000 + 100_000 + 4_000_000) << 10
    assert "MemFree" in memory.available_bytes.source


@pytest.mark.parametrize(
    "text", ["", "MemTotal 5", "MemAvailable: many kB\n", "MemAvailable: 5 MB"]
)
def test_malformed_meminfo_gives_no_value_and_a_reason(tmp_path: Path, text: str) -> None:
    memory = read_memory(write_tree(tmp_path, {"/proc/meminfo": text}))
    assert memory.usable_bytes.value is None
    assert "MemAvailable" in memory.usable_bytes.source


def test_address_space_limit_binds(tmp_path: Path) -> None:
    limits = (
        "Limit     Soft Limit   Hard Limit   Units\nMax address space 4000000000 unlimited bytes\n"
    )
    files = {
        "/proc/meminfo": MEMINFO,
        "/proc/self/limits": limits,
        "/proc/self/statm": "1000 500 100 1 0 400 0\n",
    }
    memory = read_memory(write_tree(tmp_path, files))
    assert memory.usable_bytes.value == 4_000_000_000 - 1000 * 4096 - (256 << 20)
    assert "RLIMIT_AS" in memory.usable_bytes.source


def test_size_of_this_process(tmp_path: Path) -> None:
    status = "Name:\tqh\nVmRSS:\t   50000 kB\nRssAnon:\t   20000 kB\nRssFile:\t 30000 kB\n"
    memory = read_memory(write_tree(tmp_path, {"/proc/self/status": status}))
    assert memory.process_bytes.value == 50_000 << 10
    assert memory.process_anonymous_bytes.value == 20_000 << 10
    here = read_memory().process_bytes.value
    assert here is not None
    assert here == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_this_machine_agrees_with_psutil() -> None:
    memory = read_memory()
    found = psutil.virtual_memory()
    assert memory.total_bytes.value == found.total
    assert memory.available_bytes.value is not None
    # Two readings a moment apart, on a machine that is doing other things.
    assert abs(memory.available_bytes.value - found.available) < 0.1 * found.total
