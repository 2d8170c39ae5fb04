"""Tensors in memory behave like those of a file."""

from __future__ import annotations

import numpy as np
import pytest

from qh_runtime.checkpoints.memory_tensors import MemoryTensors
from qh_runtime.errors import CheckpointError


def test_types_shapes_and_read_only_views() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    source = MemoryTensors({"a": array, "b": ("BF16", np.ones(3, np.uint16)), "s": np.float32(2)})
    assert source.names() == ("a", "b", "s")
    assert source.info("a").dtype == "F32"
    assert source.info("b").dtype == "BF16"
    assert source.info("s").shape == ()
    view = source.read("a")
    np.testing.assert_array_equal(view, array)
    assert not view.flags.writeable
    assert array.flags.writeable
    assert source.info("a").nbytes == 24


def test_an_array_of_another_type_than_stated_is_refused() -> None:
    with pytest.raises(CheckpointError) as error:
        MemoryTensors({"a": ("BF16", np.ones(3, np.float32))})
    assert error.value.facts["tensor"] == "a"


def test_identity_follows_names_types_and_content() -> None:
    ones = np.ones(4, np.float32)
    base = MemoryTensors({"a": ones}).identity()
    assert MemoryTensors({"a": ones.copy()}).identity() == base
    others = [{"b": ones}, {"a": ones * 2}, {"a": ones.reshape(2, 2)}, {"a": ones.view(np.int32)}]
    assert len({base, *(MemoryTensors(other).identity() for other in others)}) == 5


def test_after_close_there_is_nothing() -> None:
    source = MemoryTensors({"a": np.ones(1, np.float32)})
    source.close()
    assert source.names() == ()
    with pytest.raises(CheckpointError):
        source.read("a")
