"""HardwareProfile: every fact of this machine in one frozen object, each with its provenance."""

from __future__ import annotations

import dataclasses
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qh_runtime.errors import HardwareError
from qh_runtime.hardware.cpu import CpuFacts, read_cpu
from qh_runtime.hardware.disk import DiskFacts, read_disk
from qh_runtime.hardware.facts import Fact
from qh_runtime.hardware.gpu import GpuFacts, read_gpus
from qh_runtime.hardware.memory import MemoryFacts, read_memory

__all__ = ["HardwareProfile", "PlatformFacts", "probe"]


@dataclass(frozen=True)
class PlatformFacts:
    """What runs on the machine."""

    system: Fact[str]
    release: Fact[str]
    libc: Fact[str]
    python: Fact[str]


@dataclass(frozen=True)
class HardwareProfile:
    """What this machine is; it holds facts and no decisions.

    Attributes:
        gpus: no value means none could be asked for, and `source` says why.
        disk: the file system of the data folder.
    """

    memory: MemoryFacts
    cpu: CpuFacts
    gpus: Fact[tuple[GpuFacts, ...]]
    disk: Fact[DiskFacts]
    platform: PlatformFacts

    @property
    def usable_bytes(self) -> int:
        """Bytes this process may still use.

        Raises:
            HardwareError: the system tells neither available memory nor a limit.
        """
        fact = self.memory.usable_bytes
        if fact.value is None:
            raise HardwareError(
                f"available memory: expected a number of bytes, found none ({fact.source})",
                hint="load with --force, which skips the check",
                fact="usable_bytes",
            )
        return fact.value

    @property
    def usable_threads(self) -> int:
        """Kernel threads that can run at full speed; at least 1."""
        return self.cpu.usable_threads.value or 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; every fact is {"value", "source"}."""
        return dataclasses.asdict(self)


def probe(data_dir: Path, root: Path = Path("/")) -> HardwareProfile:
    """Return the profile of this machine.

    Args:
        data_dir: folder whose file system will hold models; need not exist.
        root: folder that holds proc and sys; another one reads a recorded machine.
    """
    libc = " ".join(x for x in platform.libc_ver() if x)
    return HardwareProfile(
        memory=read_memory(root),
        cpu=read_cpu(root),
        gpus=read_gpus(),
        disk=read_disk(data_dir),
        platform=PlatformFacts(
            system=Fact(platform.system() or None, "platform.system()"),
            release=Fact(platform.release() or None, "platform.release()"),
            libc=Fact(libc or None, "platform.libc_ver()"),
            python=Fact(sys.version.partition(" ")[0], "sys.version"),
        ),
    )
