"""Memory limits and quotas of recorded control-group trees, versions 1 and 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from qh_runtime.hardware.cgroup import read_cgroup_memory, read_cpu_quota
from qh_runtime.hardware.memory import read_memory
from tests.support.recorded_machine import (
    AVAILABLE_BYTES,
    MEMINFO,
    V1_MOUNTS,
    V2_MOUNT,
    write_tree,
)

GB = 10**9
STAT_V2 = (
    "anon 1\nfile 600000000\nactive_file 300000000\ninactive_file 200000000\n"
    "slab_reclaimable 50000000\nslab 9\n"
)
STAT_V1 = "cache 7\nactive_file 1\ntotal_active_file 300000000\ntotal_inactive_file 200000000\n"


def v2(group: str, folder: str, **files: str) -> dict[str, str]:
    tree = {
        "/proc/meminfo": MEMINFO,
        "/proc/self/cgroup": f"0::{group}\n",
        "/proc/self/mountinfo": V2_MOUNT,
    }
    return tree | {
        f"/sys/fs/cgroup{folder}/{name.replace('__', '.')}": text for name, text in files.items()
    }


def test_v2_headroom_is_the_limit_minus_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    files = v2(
        "/app", "/app", memory__max=f"{2 * GB}\n", memory__current=f"{GB}\n", memory__stat=STAT_V2
    )
    memory = read_memory(write_tree(tmp_path, files))
    group = memory.cgroup.value
    assert group is not None
    assert (group.version, group.path) == (2, "/sys/fs/cgroup/app")
    assert group.limit_bytes == 2 * GB
    assert group.used_bytes == GB - 550_000_000
    assert memory.usable_bytes.value == 2 * GB - (GB - 550_000_000)
    assert "cgroup v2" in memory.usable_bytes.source


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    files = v2("/app", "/app", memory__max="max\n", memory__high="max\n", memory__current="5\n")
    memory = read_memory(write_tree(tmp_path, files))
    assert memory.cgroup.value is None
    assert memory.usable_bytes.value == AVAILABLE_BYTES


def test_v2_high_binds_where_it_is_lower(tmp_path: Path) -> None:
    files = v2("/a", "/a", memory__max=f"{2 * GB}", memory__high=f"{GB}", memory__current="0")
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.limit_bytes == GB


def test_v2_the_tightest_ancestor_counts(tmp_path: Path) -> None:
    files = v2("/a/b/c", "/a/b/c", memory__max=f"{8 * GB}", memory__current="1000")
    files |= v2("/a/b/c", "/a", memory__max=f"{3 * GB}", memory__current=f"{2 * GB}")
    files |= v2("/a/b/c", "/a/b", memory__max="max", memory__current=f"{2 * GB}")
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.path == "/sys/fs/cgroup/a"
    assert group.headroom_bytes == GB


def test_v2_mounted_from_the_containers_own_group(tmp_path: Path) -> None:
    """Without a cgroup namespace the path still counts from the host's top."""
    files = v2("/docker/abc/inner", "/inner", memory__max=f"{GB}", memory__current="0")
    files["/proc/self/mountinfo"] = V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.path == "/sys/fs/cgroup/inner"


@pytest.mark.parametrize("path", ["/../../elsewhere", "/other/group"])
def test_a_group_outside_the_mounted_part_leaves_the_mountpoint(tmp_path: Path, path: str) -> None:
    files = v2(path, "", memory__max=f"{GB}", memory__current="0")
    files["/proc/self/mountinfo"] = V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.path == "/sys/fs/cgroup"


def test_mountpoints_with_spaces_are_unescaped(tmp_path: Path) -> None:
    files = v2("/", "", memory__max="1", memory__current="0")
    files["/proc/self/mountinfo"] = V2_MOUNT.replace("/sys/fs/cgroup", r"/sys/my\040groups")
    files["/sys/my groups/memory.max"] = "777"
    files["/sys/my groups/memory.current"] = "0"
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.limit_bytes == 777


def test_over_the_limit_leaves_nothing(tmp_path: Path) -> None:
    files = v2("/", "", memory__max=f"{GB}", memory__current=f"{2 * GB}")
    assert read_memory(write_tree(tmp_path, files)).usable_bytes.value == 0


def v1(group: str, folder: str, **files: str) -> dict[str, str]:
    return {
        "/proc/meminfo": MEMINFO,
        "/proc/self/cgroup": f"4:memory:{group}\n1:cpu,cpuacct:{group}\n0::/\n",
        "/proc/self/mountinfo": V1_MOUNTS,
    } | {f"/sys/fs/cgroup/{folder}/{n.replace('__', '.')}": text for n, text in files.items()}


def test_v1_limit_and_hierarchical_use(tmp_path: Path) -> None:
    files = v1(
        "/job",
        "memory/job",
        memory__limit_in_bytes=f"{4 * GB}\n",
        memory__usage_in_bytes=f"{GB}\n",
        memory__stat=STAT_V1,
    )
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert (group.version, group.limit_bytes) == (1, 4 * GB)
    assert group.used_bytes == GB - 500_000_000


def test_v1_page_rounded_maximum_is_no_limit(tmp_path: Path) -> None:
    files = v1("/", "memory", memory__limit_in_bytes="9223372036854771712\n")
    fact = read_cgroup_memory(write_tree(tmp_path, files))
    assert fact.value is None
    assert fact.source == "no cgroup memory limit"


def test_v1_the_tightest_ancestor_counts(tmp_path: Path) -> None:
    one = {"memory__limit_in_bytes": f"{4 * GB}", "memory__usage_in_bytes": f"{GB}"}
    top = {"memory__limit_in_bytes": f"{2 * GB}", "memory__usage_in_bytes": f"{GB}"}
    files = v1("/a/b", "memory/a/b", **one) | v1("/a/b", "memory/a", **top)
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.path == "/sys/fs/cgroup/memory/a"


@pytest.mark.parametrize("text", ["", "-1", "lots", "1e9", "99999999999999999999999", "\x00\xff"])
def test_malformed_limits_are_named_and_do_not_bind(tmp_path: Path, text: str) -> None:
    files = v2("/", "", memory__max=text, memory__current="0")
    fact = read_cgroup_memory(write_tree(tmp_path, files))
    assert fact.value is None
    assert "/sys/fs/cgroup/memory.max" in fact.source


def test_a_malformed_level_does_not_hide_a_good_one(tmp_path: Path) -> None:
    files = v2("/a", "/a", memory__max="junk", memory__current="0")
    files |= v2("/a", "", memory__max=f"{GB}", memory__current="0")
    group = read_cgroup_memory(write_tree(tmp_path, files)).value
    assert group is not None
    assert group.limit_bytes == GB


@pytest.mark.parametrize("mountinfo", ["", "garbage\n", "a b c - \n", "1 2 3 / /x - cgroup2"])
def test_no_readable_mounts(tmp_path: Path, mountinfo: str) -> None:
    files = v2("/", "", memory__max="1")
    files["/proc/self/mountinfo"] = mountinfo
    assert read_cgroup_memory(write_tree(tmp_path, files)).value is None


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("50000 100000", 0.5), ("400000 50000", 8)],
)
def test_v2_quota(tmp_path: Path, text: str, cores: float | None) -> None:
    assert read_cpu_quota(write_tree(tmp_path, v2("/a", "/a", cpu__max=text))).value == cores


@pytest.mark.parametrize("text", ["100000 0", "x 100000", "100000", "", "-5 100000"])
def test_v2_malformed_quota(tmp_path: Path, text: str) -> None:
    fact = read_cpu_quota(write_tree(tmp_path, v2("/a", "/a", cpu__max=text)))
    assert fact.value is None
    assert "cpu.max" in fact.source


def test_v2_the_smallest_quota_of_all_levels(tmp_path: Path) -> None:
    files = v2("/a/b", "/a/b", cpu__max="300000 100000") | v2(
        "/a/b", "/a", cpu__max="200000 100000"
    )
    fact = read_cpu_quota(write_tree(tmp_path, files))
    assert (fact.value, fact.source) == (2.0, "/sys/fs/cgroup/a/cpu.max")


@pytest.mark.parametrize(("quota", "cores"), [("150000", 1.5), ("-1", None)])
def test_v1_quota(tmp_path: Path, quota: str, cores: float | None) -> None:
    names = {"cpu__cfs_quota_us": quota, "cpu__cfs_period_us": "100000"}
    files = v1("/job", "cpu,cpuacct/job", **names)
    assert read_cpu_quota(write_tree(tmp_path, files)).value == cores


def test_v1_quota_without_a_period(tmp_path: Path) -> None:
    files = v1("/job", "cpu,cpuacct/job", cpu__cfs_quota_us="150000")
    fact = read_cpu_quota(write_tree(tmp_path, files))
    assert fact.value is None
    assert "cfs_quota_us" in fact.source
