"""`qh-chat probe`: the facts of this machine, each with where it came from."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qh_chat.commands.context import Context
from qh_chat.inert import inert
from qh_runtime.hardware.facts import Fact
from qh_runtime.hardware.profile import HardwareProfile, probe

__all__ = ["probe_lines", "run"]


def run(args: argparse.Namespace, context: Context) -> int:
    """Print the profile; exit code 0."""
    profile = probe(context.paths.models_dir)
    if args.json:
        print(json.dumps(profile.to_dict(), allow_nan=False))
    else:
        for line in probe_lines(profile, sources=True):
            print(inert(line))
    return 0


def probe_lines(profile: HardwareProfile, *, sources: bool) -> list[str]:
    """Return the profile as lines of text, with or without where each fact came from."""
    memory, cpu = profile.memory, profile.cpu
    rows: list[tuple[str, str, Fact[Any]]] = [
        ("memory", _bytes(memory.total_bytes), memory.total_bytes),
        ("  available", _bytes(memory.available_bytes), memory.available_bytes),
        ("  swap free", _bytes(memory.swap_free_bytes), memory.swap_free_bytes),
    ]
    group = memory.cgroup
    if group.value is None:
        rows.append(("  cgroup limit", "none", group))
    else:
        used = f"{group.value.used_bytes / 1e9:.2f} GB of {group.value.limit_bytes / 1e9:.2f} GB"
        rows.append(("  cgroup limit", f"{used} used", group))
    rows.append(("  usable here", _bytes(memory.usable_bytes), memory.usable_bytes))
    rows += [
        ("processor", cpu.name.value or "unknown", cpu.name),
        ("  physical cores", _count(cpu.physical_cores), cpu.physical_cores),
        ("  logical cores", _count(cpu.logical_cores), cpu.logical_cores),
        ("  affinity", _cpus(cpu.affinity), cpu.affinity),
        ("  cgroup quota", _quota(cpu.quota_cores), cpu.quota_cores),
        ("  threads to use", _count(cpu.usable_threads), cpu.usable_threads),
        ("  instructions", " ".join(cpu.flags.value or ()) or "unknown", cpu.flags),
        ("  kernels for", " ".join(cpu.kernel_isas.value or ()) or "unknown", cpu.kernel_isas),
    ]
    for cache in cpu.caches.value or ():
        size = f"{cache.size_bytes >> 10:,} KiB, shared by {cache.shared_by}"
        rows.append((f"  L{cache.level} cache", size, cpu.caches))
    if not profile.gpus.value:
        # The reason stands with the source, and in reports without sources behind the word.
        reason = "" if sources else f" ({profile.gpus.source.removeprefix('none: ')})"
        rows.append(("graphics cards", f"none{reason}", profile.gpus))
    for card in profile.gpus.value or ():
        free = f"{card.free_bytes / 1e9:.1f} of {card.total_bytes / 1e9:.1f} GB free"
        rows.append((f"graphics card {card.index}", f"{card.name}, {free}", profile.gpus))
    disk = profile.disk
    free = "unknown" if disk.value is None else f"{disk.value.free_bytes / 1e9:.1f} GB free"
    rows.append(("disk", free, disk))
    system = profile.platform
    running = " ".join(x.value or "" for x in (system.system, system.release))
    rows.append(("system", running, system.release))
    return [
        f"{name:17} {value}" + (f"    [{fact.source}]" if sources else "")
        for name, value, fact in rows
    ]


def _bytes(fact: Fact[int]) -> str:
    return "unknown" if fact.value is None else f"{fact.value / 1e9:.2f} GB"


def _count(fact: Fact[int]) -> str:
    return "unknown" if fact.value is None else str(fact.value)


def _quota(fact: Fact[float]) -> str:
    return "none" if fact.value is None else f"{fact.value:g} cores"


def _cpus(fact: Fact[tuple[int, ...]]) -> str:
    """Processor numbers as ranges: 0-3, 8."""
    if fact.value is None:
        return "unknown"
    ranges: list[list[int]] = []
    for cpu in fact.value:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
