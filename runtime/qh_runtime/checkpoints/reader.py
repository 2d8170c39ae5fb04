"""TensorSource: named raw tensors, whatever container they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError

__all__ = ["DTYPES", "MemoryTensors", "TensorInfo", "TensorSource"]

# Container type name -> NumPy type of the view. NumPy has no bfloat16 and no 8-bit floats: those
# are views of their bits, and the name says what they mean.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a container says about a tensor, checked.

    Attributes:
        dtype: container type name, a key of DTYPES.
        shape: dimensions, each at least 1; () for a scalar.
        nbytes: size of the data.
        file: the file it lies in, by name; "" in memory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str = ""


class TensorSource(Protocol):
    """Named raw tensors. Views stay valid as long as they are referenced, even after close."""

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""

    def info(self, name: str) -> TensorInfo:
        """Type, shape and size, without touching the data. Raises CheckpointError: no such name."""

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the data, mapped where it can be; see DTYPES for its NumPy type.

        The view may be unaligned to its element. Raises CheckpointError: no such name.
        """

    def identity(self) -> str:
        """A hex digest that changes with the content, as far as that can be seen cheaply."""

    def close(self) -> None:
        """Gives the files back as soon as no view is left."""


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

    def close(self) -> None:
        """Drops the arrays."""
        self._arrays.clear()
        self._infos.clear()


def missing_tensor(name: str, where: str) -> CheckpointError:
    """The error for a tensor that is not there; the caller raises it."""
    return CheckpointError(
        f"{where}: tensor {quoted(name)} expected, not found",
        hint="the checkpoint is incomplete, or its config.json belongs to another one",
        tensor=name,
        path=where,
    )
