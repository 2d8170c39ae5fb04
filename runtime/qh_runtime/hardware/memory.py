"""Memory of this machine: what there is, what is free, and what a control group allows."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from qh_runtime.hardware.cgroup import CgroupMemory, read_cgroup_memory
from qh_runtime.hardware.facts import Fact, parse_int, read_text

__all__ = ["MemoryFacts", "read_memory"]

# Address space that libraries and threads reserve after this is read, most of it never resident:
# 207 MB from the plan to the end of an answer (CPython 3.11, glibc 2.36, 2 threads, 2026-11).
_RESERVED_BYTES = 256 << 20


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes of memory.

    Attributes:
        total_bytes: physical memory.
        available_bytes: what the system can give without swapping.
        swap_total_bytes, swap_free_bytes: shown, never planned with.
        cgroup: the tightest control-group limit.
        process_bytes: what of this process is resident now.
        process_anonymous_bytes: the part of it that is no file, so not available to others.
        address_space_bytes: what RLIMIT_AS (ulimit -v) still leaves this process.
        usable_bytes: the smallest of available_bytes, the control group's headroom and the address
            space: what this process may still use. No value when none is known.
        large_pages: whether a process gets pages of 2 MB by asking.
    """

    total_bytes: Fact[int]
    available_bytes: Fact[int]
    swap_total_bytes: Fact[int]
    swap_free_bytes: Fact[int]
    cgroup: Fact[CgroupMemory]
    process_bytes: Fact[int]
    process_anonymous_bytes: Fact[int]
    address_space_bytes: Fact[int]
    usable_bytes: Fact[int]
    large_pages: Fact[bool]


def read_memory(root: Path = Path("/")) -> MemoryFacts:
    """Return the memory facts of this machine, or of a recorded /proc and /sys below root."""
    text = read_text(root, "/proc/meminfo")
    has_proc = text is not None or root != Path("/")
    facts = _from_meminfo(text or "") if has_proc else _from_psutil()
    cgroup = read_cgroup_memory(root)
    space = _address_space(root)
    usable = _usable(facts[1], cgroup, space)
    status = read_text(root, "/proc/self/status")
    return MemoryFacts(
        *facts,
        cgroup=cgroup,
        process_bytes=_status_bytes(status, "VmRSS", has_proc),
        process_anonymous_bytes=_status_bytes(status, "RssAnon", has_proc),
        address_space_bytes=space,
        usable_bytes=usable,
        large_pages=_large_pages(root),
    )


def _large_pages(root: Path) -> Fact[bool]:
    """Transparent huge pages for whoever asks with madvise; Linux alone has them."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    text = read_text(root, path)
    if text is None or "[" not in text:
        return Fact(False, f"no {path}")
    return Fact("[never]" not in text, path)


def _status_bytes(status: str | None, name: str, has_proc: bool) -> Fact[int]:
    """One size of /proc/self/status; where there is none, psutil's resident size for both."""
    if not has_proc:
        return Fact(int(psutil.Process().memory_info().rss), "psutil memory_info().rss")
    for line in (status or "").splitlines():
        field, _, rest = line.partition(":")
        kibibytes = parse_int(rest.removesuffix("kB"))
        if field == name and kibibytes is not None:
            return Fact(kibibytes << 10, f"/proc/self/status {name}")
    return Fact(None, f"/proc/self/status has no readable {name}")


def _usable(available: Fact[int], cgroup: Fact[CgroupMemory], space: Fact[int]) -> Fact[int]:
    """The smallest of what is known; the first of equals."""
    known: list[tuple[int, str]] = []
    if available.value is not None:
        known.append((available.value, available.source))
    if cgroup.value is not None:
        source = f"{cgroup.source}: limit minus non-reclaimable use"
        known.append((cgroup.value.headroom_bytes, source))
    if space.value is not None:
        known.append((space.value, space.source))
    if not known:
        return Fact(None, available.source)
    return Fact(*min(known, key=lambda x: x[0]))


def _address_space(root: Path) -> Fact[int]:
    """What the address-space limit of this process leaves, from /proc/self/limits and statm."""
    for line in (read_text(root, "/proc/self/limits") or "").splitlines():
        if line.startswith("Max address space"):
            limit = parse_int(([*line.split(), ""])[3])
            if limit is None:
                return Fact(None, "no address-space limit")
            pages = parse_int((read_text(root, "/proc/self/statm") or "").partition(" ")[0])
            in_use = (pages or 0) * mmap.PAGESIZE
            left = max(0, limit - in_use - _RESERVED_BYTES)
            return Fact(left, "RLIMIT_AS minus this process and what its threads will reserve")
    return Fact(None, "no address-space limit known")


def _from_meminfo(text: str) -> tuple[Fact[int], Fact[int], Fact[int], Fact[int]]:
    """(total, available, swap total, swap free) of a /proc/meminfo."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        value = parse_int(number)
        if value is not None and unit.strip() == "kB":
            values[name] = value << 10

    def fact(name: str) -> Fact[int]:
        if name in values:
            return Fact(values[name], f"/proc/meminfo {name}")
        return Fact(None, f"/proc/meminfo has no readable {name}")

    available = fact("MemAvailable")
    if available.value is None and {"MemFree", "Buffers", "Cached"} <= values.keys():
        # Kernels before 3.14 have no MemAvailable; this is the estimate it replaced.
        estimate = values["MemFree"] + values["Buffers"] + values["Cached"]
        available = Fact(estimate, "/proc/meminfo MemFree + Buffers + Cached")
    return fact("MemTotal"), available, fact("SwapTotal"), fact("SwapFree")


def _from_psutil() -> tuple[Fact[int], Fact[int], Fact[int], Fact[int]]:
    """The same for systems without /proc."""
    try:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    except (OSError, RuntimeError) as error:
        missing: Fact[int] = Fact(None, f"psutil: {type(error).__name__}")
        return missing, missing, missing, missing
    return (
        Fact(int(memory.total), "psutil virtual_memory().total"),
        Fact(int(memory.available), "psutil virtual_memory().available"),
        Fact(int(swap.total), "psutil swap_memory().total"),
        Fact(int(swap.free), "psutil swap_memory().free"),
    )
