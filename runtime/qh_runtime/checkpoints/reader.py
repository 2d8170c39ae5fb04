"""TensorSource: named raw tensors, whatever container they come from. Loads no NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ITEM_BYTES", "TensorInfo", "TensorSource", "missing_tensor"]

# Container type name -> bytes of an element; `dtypes.py` has the NumPy types.
ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a container says about a tensor, checked.

    Attributes:
        dtype: container type name, a key of ITEM_BYTES.
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

    def holds(self, name: str) -> bool:
        """Whether `read` gives this tensor; of some sources only the infos are there."""

    def read(self, name: str) -> NDArray[Any]:
        """A read-only view of the data, mapped where it can be; see `dtypes` for its NumPy type.

        The view may be unaligned to its element. Raises CheckpointError: no such name.
        """

    def identity(self) -> str:
        """A hex digest that changes with the content, as far as that can be seen cheaply."""

    def check_unchanged(self) -> None:
        """Returns if the files still are those that were opened, not written to and not cut short.

        Until then, views of a file that was cut short hold zeros. Files that were deleted or
        replaced under their names do not count: views go on showing what was opened.

        Raises:
            CheckpointError: facts path and rule ("changed").
        """

    def close(self) -> None:
        """Gives the files back as soon as no view is left."""


def missing_tensor(name: str, where: str) -> CheckpointError:
    """The error for a tensor that is not there; the caller raises it."""
    return CheckpointError(
        f"{where}: tensor {quoted(name)} expected, not found",
        hint="the checkpoint is incomplete, or its config.json belongs to another one",
        tensor=name,
        path=where,
    )
