"""Recorded machines: /proc, /sys and control-group trees written to a folder, from plain texts."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MEMINFO", "V1_MOUNTS", "V2_MOUNT", "cpuinfo", "topology", "write_tree"]

# 16 GiB, as a laptop shows it; available 12,000,000 kB.
MEMINFO = """MemTotal:       16384000 kB
MemFree:         8000000 kB
MemAvailable:   12000000 kB
Buffers:          100000 kB
Cached:          4000000 kB
SwapTotal:       2000000 kB
SwapFree:        1500000 kB
HugePages_Total:       0
"""
AVAILABLE_BYTES = 12_000_000 << 10

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Write texts to root/path and return root."""
    for path, text in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return root


def topology(threads_of_core: list[str], online: str) -> dict[str, str]:
    """Sysfs topology files; threads_of_core[i] is the sibling list of each core, such as "0,4"."""
    files = {"/sys/devices/system/cpu/online": online + "\n"}
    for siblings in threads_of_core:
        for cpu in siblings.split(","):
            folder = f"/sys/devices/system/cpu/cpu{cpu}/topology"
            files[f"{folder}/core_cpus_list"] = siblings + "\n"
    return files


def cpuinfo(ids: list[tuple[int, int]], flags: str = "fpu sse4_2 avx avx2 fma f16c") -> str:
    """A /proc/cpuinfo of an x86 machine; ids are (physical id, core id) of each processor."""
    return "\n".join(
        f"processor\t: {cpu}\nmodel name\t: Recorded CPU @ 2.00GHz\nphysical id\t: {package}\n"
        f"core id\t\t: {core}\nflags\t\t: {flags}\n"
        for cpu, (package, core) in enumerate(ids)
    )
