"""A machine that nobody has: a profile with the memory and the threads that a test needs."""

from __future__ import annotations

from typing import Any

from qh_runtime.hardware.cpu import CpuFacts
from qh_runtime.hardware.facts import Fact
from qh_runtime.hardware.memory import MemoryFacts
from qh_runtime.hardware.profile import HardwareProfile, PlatformFacts

__all__ = ["NONE", "machine"]

NONE: Fact[Any] = Fact(None, "imagined")


def machine(
    usable_bytes: int | None, threads: int = 2, logical: int = 4, *, large_pages: bool = False
) -> HardwareProfile:
    """An imagined machine."""
    pages = Fact(large_pages, "imagined")
    memory = MemoryFacts(*[NONE] * 8, Fact(usable_bytes, "imagined"), pages)
    cores = (Fact(logical, "x"), Fact(threads, "x"), NONE, NONE, NONE, Fact(threads, "imagined"))
    cpu = CpuFacts(NONE, NONE, *cores, NONE, NONE, NONE)
    return HardwareProfile(memory, cpu, NONE, NONE, PlatformFacts(NONE, NONE, NONE, NONE))
