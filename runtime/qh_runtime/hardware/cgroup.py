"""Control groups of this process, versions 1 and 2: memory limits and processor quota.

A limit anywhere between the process's own group and the top of the mounted tree binds, so every
level is read and the tightest one counts. Memory that the kernel takes back before it kills
anything (file cache, reclaimable slab) is not in use.

Source: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qh_runtime.hardware.facts import Fact, parse_int, read_int, read_text

__all__ = ["CgroupMemory", "read_cgroup_memory", "read_cpu_quota"]

# A version 1 group without a limit shows 2**63 rounded down to a page; no machine has 4 EiB.
_UNLIMITED_BYTES = 1 << 62
# mountinfo writes space, tab, newline and backslash as three octal digits.
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class CgroupMemory:
    """The tightest memory limit on this process.

    Attributes:
        limit_bytes: of the group with the least headroom.
        used_bytes: what that group holds and the kernel cannot take back.
        path: that group's folder. version: 1 or 2.
    """

    limit_bytes: int
    used_bytes: int
    path: str
    version: int

    @property
    def headroom_bytes(self) -> int:
        """Bytes that may still be used before the limit; never negative."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class _Hierarchy:
    """One mounted control-group tree and the folders of this process in it, own group first."""

    version: int
    folders: tuple[str, ...]


def read_cgroup_memory(root: Path) -> Fact[CgroupMemory]:
    """Return the tightest memory limit, or no value and the reason."""
    found: list[CgroupMemory] = []
    problems: list[str] = []
    for hierarchy in _hierarchies(root, "memory"):
        for folder in hierarchy.folders:
            level = (_memory_v2 if hierarchy.version == 2 else _memory_v1)(root, folder)
            if isinstance(level, CgroupMemory):
                found.append(level)
            elif level:
                problems.append(level)
    if found:
        tightest = min(found, key=lambda x: x.headroom_bytes)
        return Fact(tightest, f"cgroup v{tightest.version} {tightest.path}")
    return Fact(None, "; ".join(problems) or "no cgroup memory limit")


def read_cpu_quota(root: Path) -> Fact[float]:
    """Return the processor time allowed, in cores (1.5 is one and a half), or no value."""
    found: list[tuple[float, str]] = []
    problems: list[str] = []
    for hierarchy in _hierarchies(root, "cpu"):
        for folder in hierarchy.folders:
            if hierarchy.version == 2:
                path = f"{folder}/cpu.max"
                text = read_text(root, path)
                if text is None:
                    continue
                quota_text, _, period_text = text.strip().partition(" ")
                if quota_text == "max":
                    continue
            else:
                path = f"{folder}/cpu.cfs_quota_us"
                quota_text = (read_text(root, path) or "-1").strip()
                if quota_text == "-1":
                    continue
                period_text = read_text(root, f"{folder}/cpu.cfs_period_us") or ""
            quota, period = parse_int(quota_text), parse_int(period_text)
            if quota is None or not period:
                problems.append(f"{path}: not a quota and a period")
            else:
                found.append((quota / period, path))
    if found:
        cores, path = min(found)
        return Fact(cores, path)
    return Fact(None, "; ".join(problems) or "no cgroup cpu quota")


def _memory_v2(root: Path, folder: str) -> CgroupMemory | str | None:
    """One level of version 2; None without a limit, text for a malformed one."""
    limits: list[int] = []
    # Above memory.high the kernel throttles the process almost to a stop, so it is a limit too.
    for name in ("memory.max", "memory.high"):
        text = read_text(root, f"{folder}/{name}")
        if text is None or text.strip() == "max":
            continue
        limit = parse_int(text)
        if limit is None:
            return f"{folder}/{name}: not a number of bytes"
        limits.append(limit)
    if not limits:
        return None
    current = read_int(root, f"{folder}/memory.current")
    if current is None:
        return f"{folder}/memory.current: not a number of bytes"
    stat = _stat(read_text(root, f"{folder}/memory.stat"))
    reclaimable = sum(stat.get(x, 0) for x in ("active_file", "inactive_file", "slab_reclaimable"))
    return CgroupMemory(min(limits), max(0, current - reclaimable), folder, 2)


def _memory_v1(root: Path, folder: str) -> CgroupMemory | str | None:
    """One level of version 1; None without a limit, text for a malformed one."""
    text = read_text(root, f"{folder}/memory.limit_in_bytes")
    if text is None:
        return None
    limit = parse_int(text)
    if limit is None:
        return f"{folder}/memory.limit_in_bytes: not a number of bytes"
    if limit >= _UNLIMITED_BYTES:
        return None
    usage = read_int(root, f"{folder}/memory.usage_in_bytes")
    if usage is None:
        return f"{folder}/memory.usage_in_bytes: not a number of bytes"
    stat = _stat(read_text(root, f"{folder}/memory.stat"))
    # The total_ values include the groups below, as usage does.
    reclaimable = sum(
        stat.get(f"total_{x}", stat.get(x, 0)) for x in ("active_file", "inactive_file")
    )
    return CgroupMemory(limit, max(0, usage - reclaimable), folder, 1)


def _stat(text: str | None) -> dict[str, int]:
    """The "name number" lines of a memory.stat file; malformed lines are left out."""
    values: dict[str, int] = {}
    for line in (text or "").splitlines():
        name, _, number = line.partition(" ")
        value = parse_int(number)
        if value is not None:
            values[name] = value
    return values


def _hierarchies(root: Path, controller: str) -> list[_Hierarchy]:
    """The trees that may limit this controller, with this process's folders in each."""
    own = _own_groups(read_text(root, "/proc/self/cgroup") or "", controller)
    found = []
    for line in (read_text(root, "/proc/self/mountinfo") or "").splitlines():
        # Fields: id parent major:minor root mountpoint options... - type source superoptions
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or not kind:
            continue
        version = {"cgroup2": 2, "cgroup": 1}.get(kind[0])
        if version is None or version not in own:
            continue
        if version == 1 and controller not in kind[-1].split(","):
            continue
        mountpoint, mounted_root = (_OCTAL.sub(_character, x) for x in (fields[4], fields[3]))
        found.append(_Hierarchy(version, _levels(mountpoint, mounted_root, own[version])))
    return found


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _own_groups(text: str, controller: str) -> dict[int, str]:
    """Version to group path of this process, from /proc/self/cgroup."""
    own: dict[int, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        number, controllers, path = parts
        if number == "0" and not controllers:
            own[2] = path
        elif controller in controllers.split(","):
            own[1] = path
    return own


def _levels(mountpoint: str, mounted_root: str, group: str) -> tuple[str, ...]:
    """Folders from the process's group up to the mountpoint.

    In a container the tree is often mounted from the container's own group down, while the path
    still counts from the top; the part that is mounted away is cut off. A path outside the mounted
    part (a group of another namespace) leaves the mountpoint alone.
    """
    parts = [x for x in group.split("/") if x]
    prefix = [x for x in mounted_root.split("/") if x]
    if parts[: len(prefix)] != prefix or ".." in parts:
        return (mountpoint,)
    inside = parts[len(prefix) :]
    return tuple(
        "/".join([mountpoint.rstrip("/"), *inside[:depth]]) or "/"
        for depth in range(len(inside), -1, -1)
    )
