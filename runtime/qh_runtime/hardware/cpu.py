"""Processors: how many cores this process may use, which instructions, which caches."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from qh_kernels import isa
from qh_runtime.hardware.cgroup import read_cpu_quota
from qh_runtime.hardware.facts import Fact, parse_cpu_list, read_int, read_text

__all__ = ["CacheFacts", "CpuFacts", "read_cpu", "usable_threads"]

# Instruction sets worth naming: those our kernels use, and those that say what a machine could do.
_NAMED_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512vbmi", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True)
class CacheFacts:
    """One cache as processor 0 sees it. kind: "Data", "Unified" or "Instruction"."""

    level: int
    kind: str
    size_bytes: int
    shared_by: int


@dataclass(frozen=True)
class CpuFacts:
    """Processors.

    Attributes:
        name: as the machine calls itself. architecture: "x86_64", "aarch64", ...
        logical_cores, physical_cores: of the whole machine.
        affinity: logical processors this process may run on.
        affinity_cores: physical cores among them.
        quota_cores: processor time that control groups allow, in cores.
        usable_threads: see `usable_threads`.
        flags: instruction sets that the kernel lists, so both CPU and operating system enable them.
        kernel_isas: instruction sets that our kernels can run here, best first (CPUID and XGETBV).
        caches: data and unified caches.
    """

    name: Fact[str]
    architecture: Fact[str]
    logical_cores: Fact[int]
    physical_cores: Fact[int]
    affinity: Fact[tuple[int, ...]]
    affinity_cores: Fact[int]
    quota_cores: Fact[float]
    usable_threads: Fact[int]
    flags: Fact[tuple[str, ...]]
    kernel_isas: Fact[tuple[str, ...]]
    caches: Fact[tuple[CacheFacts, ...]]


def read_cpu(
    root: Path = Path("/"),
    affinity: frozenset[int] | None = None,
    kernel_isas: Callable[[], Fact[tuple[str, ...]]] | None = None,
) -> CpuFacts:
    """Return the processor facts of this machine, or of a recorded tree below root.

    Args:
        root: folder that holds proc and sys.
        affinity: processors this process may use; None asks the system.
        kernel_isas: asks the native module; None is `native_isas`.
    """
    info = read_text(root, "/proc/cpuinfo") or ""
    here = root == Path("/")
    allowed = _affinity(affinity)
    cores = _core_of_cpu(root, info)
    logical, physical = _core_counts(cores, here)
    in_use = _affinity_cores(allowed, cores.value or {})
    quota = read_cpu_quota(root)
    return CpuFacts(
        name=_name(info),
        architecture=Fact(platform.machine() or None, "platform.machine()"),
        logical_cores=logical,
        physical_cores=physical,
        affinity=allowed,
        affinity_cores=in_use,
        quota_cores=quota,
        usable_threads=usable_threads(logical, physical, in_use, quota),
        flags=_flags(info),
        kernel_isas=(kernel_isas or native_isas)(),
        caches=_caches(root),
    )


def usable_threads(
    logical: Fact[int], physical: Fact[int], affinity_cores: Fact[int], quota: Fact[float]
) -> Fact[int]:
    """Return how many kernel threads this process can keep running at full speed; at least 1.

    One thread per physical core that the process may use: two threads on one core share its load
    ports and its memory queue, which one kernel thread already fills. A control-group quota rounds
    down: a thread that the quota stops makes all others wait for it at the next hand-over.
    """
    base = next((x for x in (affinity_cores, physical, logical) if x.value), None)
    if base is None or base.value is None:
        return Fact(1, "number of cores unknown")
    if quota.value is not None and math.floor(quota.value) < base.value:
        return Fact(max(1, math.floor(quota.value)), f"quota rounded down, {quota.source}")
    return Fact(base.value, f"one per physical core, {base.source}")


def native_isas() -> Fact[tuple[str, ...]]:
    """Return what the native module detects, best first, or no value and the reason."""
    try:
        names = isa.available()
    except ImportError as error:
        return Fact(None, f"the native module is not built ({type(error).__name__})")
    return Fact(tuple(reversed(names)), "CPUID and operating-system state, by qh_kernels")


def _affinity(given: frozenset[int] | None) -> Fact[tuple[int, ...]]:
    if given is not None:
        return Fact(tuple(sorted(given)), "given")
    if not hasattr(os, "sched_getaffinity"):
        return Fact(None, "this system has no processor affinity to ask for")
    try:
        return Fact(tuple(sorted(os.sched_getaffinity(0))), "sched_getaffinity")
    except OSError as error:
        return Fact(None, f"sched_getaffinity: {error.strerror}")


def _core_of_cpu(root: Path, info: str) -> Fact[dict[int, object]]:
    """Logical processor to an identity of its physical core."""
    online = parse_cpu_list(read_text(root, "/sys/devices/system/cpu/online") or "")
    cores: dict[int, object] = {}
    for cpu in sorted(online or ()):
        folder = f"/sys/devices/system/cpu/cpu{cpu}/topology"
        text = read_text(root, f"{folder}/core_cpus_list") or read_text(
            root, f"{folder}/thread_siblings_list"
        )
        siblings = parse_cpu_list(text or "")
        if siblings is None or cpu not in siblings:
            cores.clear()
            break
        cores[cpu] = min(siblings)
    if cores:
        return Fact(cores, "/sys/devices/system/cpu/*/topology")
    cores = _core_of_cpu_by_cpuinfo(info)
    if cores:
        return Fact(cores, "/proc/cpuinfo physical id and core id")
    return Fact(None, "no readable topology in /sys or /proc/cpuinfo")


def _core_of_cpu_by_cpuinfo(info: str) -> dict[int, object]:
    """The same from "processor", "physical id" and "core id"; without ids each is its own core."""
    cores: dict[int, object] = {}
    for block in info.split("\n\n"):
        fields = {
            key.strip(): value.strip()
            for key, colon, value in (line.partition(":") for line in block.splitlines())
            if colon
        }
        number = fields.get("processor", "")
        if number.isascii() and number.isdigit() and len(number) < 6:
            ids = (fields.get("physical id"), fields.get("core id"))
            cores[int(number)] = int(number) if None in ids else ids
    return cores


def _core_counts(cores: Fact[dict[int, object]], here: bool) -> tuple[Fact[int], Fact[int]]:
    if cores.value:
        logical = Fact(len(cores.value), cores.source)
        return logical, Fact(len(set(cores.value.values())), cores.source)
    if here:
        return (
            Fact(psutil.cpu_count(logical=True), "psutil cpu_count(logical=True)"),
            Fact(psutil.cpu_count(logical=False), "psutil cpu_count(logical=False)"),
        )
    return Fact(None, cores.source), Fact(None, cores.source)


def _affinity_cores(allowed: Fact[tuple[int, ...]], cores: dict[int, object]) -> Fact[int]:
    if not allowed.value or not cores:
        return Fact(None, allowed.source if not allowed.value else "topology unknown")
    # A processor that the topology does not list counts as a core of its own.
    return Fact(
        len({cores.get(cpu, ("unlisted", cpu)) for cpu in allowed.value}),
        f"{allowed.source} by topology",
    )


def _name(info: str) -> Fact[str]:
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return Fact(value.strip()[:200], f"/proc/cpuinfo {key.strip()}")
    name = platform.processor()
    return Fact(name, "platform.processor()") if name else Fact(None, "no name found")


def _flags(info: str) -> Fact[tuple[str, ...]]:
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            found = tuple(x for x in _NAMED_FLAGS if x in present)
            return Fact(found, f"/proc/cpuinfo {key.strip()}")
    return Fact(None, "/proc/cpuinfo lists no instruction sets")


def _caches(root: Path) -> Fact[tuple[CacheFacts, ...]]:
    folder = "/sys/devices/system/cpu/cpu0/cache"
    found = []
    for index in range(16):
        base = f"{folder}/index{index}"
        level = read_int(root, f"{base}/level")
        size = _size_bytes((read_text(root, f"{base}/size") or "").strip())
        kind = (read_text(root, f"{base}/type") or "").strip()
        sharing = parse_cpu_list(read_text(root, f"{base}/shared_cpu_list") or "")
        if level is None or size is None or kind not in ("Data", "Unified"):
            continue
        found.append(CacheFacts(level, kind, size, len(sharing or (0,))))
    if found:
        return Fact(tuple(found), folder)
    return Fact(None, f"{folder} is not readable")


def _size_bytes(text: str) -> int | None:
    """Bytes of a size such as "32K" or "16M"."""
    shift = {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    digits = text[:-1] if shift else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 12:
        return None
    return int(digits) << shift
