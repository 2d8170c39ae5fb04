"""What packing has read of a checkpoint does not stay in memory beside the packed weights."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.packing import load_packed_model
from qh_runtime.packing.released_pages import release_pages
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

SIZES = {"vocab_size": 2000, "hidden_size": 512, "head_dim": 128, "intermediate_size": 1024}


def resident_bytes(path: Path) -> int:
    """Bytes of a file that this process holds in memory through its mappings."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        pytest.skip("this system does not show which pages of a mapping are in memory")
    total, inside = 0, False
    for line in lines:
        head = line.split(maxsplit=5)
        if not head[0].endswith(":"):
            inside = len(head) == 6 and head[5] == str(path)
        elif inside and head[0] == "Rss:":
            total += int(head[1]) << 10
    return total


@pytest.mark.parametrize("kept", [True, False], ids=["file", "memory"])
def test_packed_tensors_leave_the_memory(kept: bool, tmp_path: Path) -> None:
    spec = spec_of(**SIZES)
    tensors = random_tensors(spec)
    folder = write_checkpoint(tmp_path / "model", config(**SIZES), tensors)
    weights = folder / "model.safetensors"
    source = open_checkpoint(folder)
    cache = tmp_path / "cache" if kept else None
    model = load_packed_model(spec, source, layout_for({}), pack="int8", cache_folder=cache)
    assert model is not None
    # Norms, the header and the pages that two tensors share are all that may be left.
    assert resident_bytes(weights) < weights.stat().st_size // 10
    # And they come back when somebody reads them.
    name = f"{spec.layers[0].q.name}.weight"
    np.testing.assert_array_equal(source.read(name).reshape(-1), tensors[name][1].reshape(-1))
    assert resident_bytes(weights) > 0


def test_only_whole_pages_of_the_array_are_released(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    content = np.random.default_rng(1).integers(0, 256, 5 * mmap.PAGESIZE, np.uint8)
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = np.frombuffer(mapping, np.uint8)
    np.testing.assert_array_equal(whole, content)
    before = resident_bytes(path)
    release_pages(whole[100 : 3 * mmap.PAGESIZE + 7].reshape(-1, 1))
    # Of pages 0 to 3 only 1 and 2 lie within.
    assert resident_bytes(path) == before - 2 * mmap.PAGESIZE
    release_pages(whole[5:20])
    assert resident_bytes(path) == before - 2 * mmap.PAGESIZE
    np.testing.assert_array_equal(whole, content)


def test_arrays_that_are_not_mapped_are_left_alone() -> None:
    array = np.arange(10_000, dtype=np.int32)
    release_pages(array[::2])
    np.testing.assert_array_equal(array, np.arange(10_000))
