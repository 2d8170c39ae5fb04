"""MemoryTensors: tensors that are arrays already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.dtypes import DTYPES
from qh_runtime.checkpoints.reader import TensorInfo, missing_tensor
from qh_runtime.errors import CheckpointError

__all__ = ["MemoryTensors"]


class MemoryTensors:
    """A TensorSource over arrays: for tests, conversions in memory and random weights.

    Args:
        tensors: name -> array, or (container type name, array) where NumPy has no such type.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any] | tuple[str, NDArray[Any]]]) -> None:
        names = {DTYPES[name]: name for name in ("U8", "I8", "U16", "I16", "F16", "U32", "I32")}
        names |= {DTYPES[name]: name for name in ("F32", "U64", "I64", "F64")}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._infos: dict[str, TensorInfo] = {}
        for name, given in tensors.items():
            dtype, array = given if isinstance(given, tuple) else (names[given.dtype], given)
            if array.dtype != DTYPES[dtype]:
                raise CheckpointError(
                    f"{name}: expected an array of {DTYPES[dtype]} for {dtype}, "
                    f"found {array.dtype}",
                    tensor=name,
                )
            view = np.ascontiguousarray(array).reshape(array.shape)
            view.flags.writeable = False
            self._arrays[name] = view
            self._infos[name] = TensorInfo(name, dtype, view.shape, view.nbytes)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._infos))

    def info(self, name: str) -> TensorInfo:
        """See TensorSource."""
        if name not in self._infos:
            raise missing_tensor(name, "the given tensors")
        return self._infos[name]

    def holds(self, name: str) -> bool:
        """See TensorSource."""
        return name in self

    def read(self, name: str) -> NDArray[Any]:
        """See TensorSource."""
        self.info(name)
        return self._arrays[name]

    def identity(self) -> str:
        """A digest of everything: names, types, shapes and data."""
        digest = hashlib.blake2b(digest_size=20)
        for name in self.names():
            info = self._infos[name]
            digest.update(f"{name}\0{info.dtype}\0{info.shape}\0".encode())
            digest.update(self._arrays[name].reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Nobody else can change them."""

    def close(self) -> None:
        """Drops the arrays."""
        self._arrays.clear()
        self._infos.clear()
