"""The roofline: how fast this machine reads memory and multiplies, measured and never looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qh_chat.benchmark.samples import spread
from qh_kernels.bench import ReadBench, mac_peak_names, measure_mac_peak

__all__ = ["Limits", "peak_name"]

_MIB = 1 << 20


@dataclass
class Limits:
    """Measures limits beside what they limit, and remembers every sample.

    Attributes:
        memory: read again and again; larger than any cache.
        seconds: of one sample.
    """

    memory: ReadBench
    seconds: float
    _bandwidth: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    _peaks: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def bandwidth(self, threads: int, n_bytes: int | None = None) -> float:
        """Bytes per second read by so many threads now."""
        size = self.memory.n_bytes if n_bytes is None else n_bytes
        rate = self.memory.measure(threads, self.seconds, size)
        self._bandwidth.setdefault((size, threads), []).append(rate)
        return rate

    def peak(self, name: str, threads: int) -> float:
        """Multiply-adds per second of an instruction sequence now."""
        rate = measure_mac_peak(name, threads, self.seconds / 4)
        self._peaks.setdefault((name, threads), []).append(rate)
        return rate

    def measure(self, threads: Sequence[int], sizes_mib: Sequence[int], rounds: int) -> None:
        """Take samples of every size, sequence and number of threads, in turn."""
        for _ in range(rounds):
            for count in threads:
                for size in sizes_mib:
                    self.bandwidth(count, min(size * _MIB, self.memory.n_bytes))
                for name in mac_peak_names():
                    self.peak(name, count)

    def roofline(self) -> dict[str, Any]:
        """All samples so far as JSON data, rates in 10**9 a second."""
        read = []
        for (size, threads), rates in sorted(self._bandwidth.items()):
            found = spread([x / 1e9 for x in rates])
            read.append(
                {
                    "bytes": size,
                    "threads": threads,
                    "gb_per_s": found.median,
                    "spread": found.range,
                    "samples": len(rates),
                }
            )
        peaks = []
        for (name, threads), rates in sorted(self._peaks.items()):
            found = spread([x / 1e9 for x in rates])
            peaks.append(
                {
                    "name": name,
                    "threads": threads,
                    "gmacs_per_s": found.median,
                    "spread": found.range,
                    "samples": len(rates),
                }
            )
        return {"read_bandwidth": read, "mac_peaks": peaks}


def peak_name(isa: str, family: str) -> str | None:
    """The instruction sequence that limits prefill; None where none is known or runs here.

    Args:
        isa: of the kernels in use.
        family: of the weight format; dense formats multiply float32.
    """
    if family == "dense":
        wanted = {"avx512": "fma_zmm", "avx": "fma_ymm", "neon": "fmla"}
    elif "amx" in isa:
        # Row scales are applied after a whole row: int8 tiles. Group scales need bf16 ones.
        wanted = {"": "tdpbssd" if family in ("ternary", "int8") else "tdpbf16ps"}
    else:
        wanted = {
            "avx512": "vpdpbusd_zmm",
            "avxvnni": "vpdpbusd_ymm",
            "avx2": "maddubs_ymm",
            "neon_i8mm": "smmla",
            "neon_dotprod": "sdot",
            "neon": "smlal",
        }
    name = next((peak for start, peak in wanted.items() if isa.startswith(start)), None)
    return name if name in mac_peak_names() else None
