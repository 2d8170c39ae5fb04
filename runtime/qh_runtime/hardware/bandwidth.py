"""How fast this machine reads memory, the limit of every decode step: measured, never looked up."""

from __future__ import annotations

from qh_runtime.hardware.facts import Fact

__all__ = ["read_bandwidth"]


def read_bandwidth(threads: int, seconds: float = 0.5, tries: int = 2) -> Fact[float]:
    """Return bytes per second that this many threads read together, the best of some tries.

    The best and not the mean: other programs can only lower it.

    Args:
        seconds: of each try; 512 MB are read again and again, more than any cache holds.

    Raises:
        KernelError: no such number of threads, or not enough memory.
    """
    from qh_kernels.bench import measure_read_bandwidth

    best = max(measure_read_bandwidth(threads=threads, seconds=seconds) for _ in range(tries))
    return Fact(best, f"measured with {threads} threads, best of {tries} times {seconds:g} s")
