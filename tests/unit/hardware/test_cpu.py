"""Processor facts of recorded machines: topology, affinity, quota and what follows from them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_runtime.hardware.cpu import CpuFacts, read_cpu
from qh_runtime.hardware.facts import Fact
from tests.support.cli import qh_environment
from tests.support.recorded_machine import V2_MOUNT, cpuinfo, topology, write_tree

FOUR_CORES_SMT = topology(["0,4", "1,5", "2,6", "3,7"], "0-7")


def read(root: Path, files: dict[str, str], affinity: set[int]) -> CpuFacts:
    def isas() -> Fact[tuple[str, ...]]:
        return Fact(None, "recorded")

    return read_cpu(write_tree(root, files), frozenset(affinity), isas)


def test_one_thread_per_physical_core(tmp_path: Path) -> None:
    cpu = read(tmp_path, FOUR_CORES_SMT, set(range(8)))
    assert (cpu.logical_cores.value, cpu.physical_cores.value) == (8, 4)
    assert (cpu.affinity_cores.value, cpu.usable_threads.value) == (4, 4)


@pytest.mark.parametrize(
    ("affinity", "threads"), [({0, 4}, 1), ({0, 1, 4}, 2), ({6}, 1), ({4, 5, 6, 7}, 4)]
)
def test_affinity_counts_cores_not_their_threads(
    tmp_path: Path, affinity: set[int], threads: int
) -> None:
    cpu = read(tmp_path, FOUR_CORES_SMT, affinity)
    assert cpu.affinity.value == tuple(sorted(affinity))
    assert cpu.usable_threads.value == threads


@pytest.mark.parametrize(
    ("quota", "threads"), [("150000", 1), ("200000", 2), ("50000", 1), ("900000", 4), ("max", 4)]
)
def test_quota_rounds_down(tmp_path: Path, quota: str, threads: int) -> None:
    files = FOUR_CORES_SMT | {
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": V2_MOUNT,
        "/sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
    }
    assert read(tmp_path, files, set(range(8))).usable_threads.value == threads


def test_topology_from_cpuinfo_where_sysfs_is_hidden(tmp_path: Path) -> None:
    ids = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    cpu = read(tmp_path, {"/proc/cpuinfo": cpuinfo(ids)}, {0, 1, 2, 3, 4, 5})
    assert (cpu.logical_cores.value, cpu.physical_cores.value) == (6, 4)
    assert cpu.usable_threads.value == 4
    assert cpu.name.value == "Recorded CPU @ 2.00GHz"


def test_flags_are_whole_words(tmp_path: Path) -> None:
    text = cpuinfo([(0, 0)], "fpu avx2x avx512_vnni_not avx amx_int8")
    cpu = read(tmp_path, {"/proc/cpuinfo": text}, {0})
    assert cpu.flags.value == ("avx", "amx_int8")


def test_arm_cpuinfo_has_features_and_no_core_ids(tmp_path: Path) -> None:
    text = "".join(
        f"processor\t: {i}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16\n\n"
        for i in range(4)
    )
    cpu = read(tmp_path, {"/proc/cpuinfo": text}, {0, 1, 2, 3})
    assert cpu.flags.value == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16")
    assert (cpu.physical_cores.value, cpu.usable_threads.value) == (4, 4)


@pytest.mark.parametrize("bad", ["", "x", "0-", "5-2", "0-99999999", "-1", "1,,2", "\u0664"])
def test_malformed_topology_is_no_topology(tmp_path: Path, bad: str) -> None:
    cpu = read(tmp_path, topology(["0", "1"], bad), {0, 1})
    assert cpu.logical_cores.value is None
    assert cpu.usable_threads.value == 1
    assert cpu.usable_threads.source == "number of cores unknown"


def test_a_processor_that_is_not_listed_counts_for_itself(tmp_path: Path) -> None:
    assert read(tmp_path, FOUR_CORES_SMT, {0, 99}).usable_threads.value == 2


def test_caches(tmp_path: Path) -> None:
    files = dict(FOUR_CORES_SMT)
    rows = [("0", "1", "Data", "32K", "0,4"), ("1", "1", "Instruction", "32K", "0,4")]
    rows += [("2", "2", "Unified", "1M", "0,4"), ("3", "3", "Unified", "bogus", "0-7")]
    for index, level, kind, size, shared in rows:
        folder = f"/sys/devices/system/cpu/cpu0/cache/index{index}"
        files |= {f"{folder}/level": level, f"{folder}/type": kind, f"{folder}/size": size}
        files[f"{folder}/shared_cpu_list"] = shared
    caches = read(tmp_path, files, {0}).caches.value
    assert caches is not None
    assert [(x.level, x.size_bytes, x.shared_by) for x in caches] == [
        (1, 32768, 2),
        (2, 1 << 20, 2),
    ]


def test_this_machine() -> None:
    cpu = read_cpu()
    assert cpu.affinity.value == tuple(sorted(os.sched_getaffinity(0)))
    assert cpu.usable_threads.value is not None
    assert 1 <= cpu.usable_threads.value <= len(cpu.affinity.value)


def test_one_allowed_processor_is_one_thread() -> None:
    """The mask of the calling thread counts, as it is what the decoder's workers inherit."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no processor affinity")
    found: list[CpuFacts] = []

    def restrict_and_read() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        found.append(read_cpu())

    runner = threading.Thread(target=restrict_and_read)
    runner.start()
    runner.join()
    assert found[0].usable_threads.value == 1
    assert len(found[0].affinity.value or ()) == 1


@pytest.fixture
def quota_group() -> Iterator[Path]:
    """A control group that may use half a processor; needs rights that containers rarely give."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    folder = (v1 if v1.is_dir() else v2) / f"qh-chat-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no right to make a control group: {error.strerror}")
    try:
        if v1.is_dir():
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text("50000")
        else:
            (folder / "cpu.max").write_text("50000 100000")
        yield folder
    except OSError as error:
        pytest.skip(f"no right to limit processor time: {error.strerror}")
    finally:
        folder.rmdir()


def test_a_real_quota_is_found(quota_group: Path, tmp_path: Path) -> None:
    ask = (
        "from qh_runtime.hardware.cpu import read_cpu; x = read_cpu();"
        "print(x.quota_cores.value, x.usable_threads.value, x.usable_threads.source)"
    )
    script = f"echo $$ > {quota_group}/cgroup.procs && exec {sys.executable} -c '{ask}'"
    environment = qh_environment(tmp_path)
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    quota, threads, source = done.stdout.split(maxsplit=2)
    assert (quota, threads) == ("0.5", "1")
    assert source.startswith("quota rounded down")
