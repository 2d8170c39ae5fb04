"""DroppedSource: a model whose weights were removed, because their packed form stands for them.

What is left of the weights in the model's folder:

    kept.json             names, types and shapes of all tensors that there were, the identity of
                          the source, and which pack stands for it
    kept.safetensors      the tensors that are not in the pack: norms, biases, dense embeddings
    packed.safetensors    the pack

With the same infos and the same identity everything is planned as before and the pack has the key
it had, so a load maps the same bytes. Reading a tensor that is only in the pack is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qh_runtime.checkpoints.files import read_small_file, resolve_file
from qh_runtime.checkpoints.reader import ITEM_BYTES, TensorInfo, missing_tensor
from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.checkpoints.strict_json import decode, parse_object, quoted
from qh_runtime.errors import CheckpointError
from qh_runtime.units import gigabytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KEPT", "PACKED", "RECORD", "DroppedSource", "KeptRecord"]

RECORD = "kept.json"
KEPT = "kept.safetensors"
PACKED = "packed.safetensors"
MAX_RECORD_BYTES = 32 << 20
_VERSION = 1


@dataclass(frozen=True)
class KeptRecord:
    """What is remembered of a source.

    Attributes:
        name: of the model. again: the command that gets the source again.
        identity: of the source. pack_format: as it was asked for, None where it was not.
        source_bytes: size of the weight files that were removed.
        tensors: all that there were.
    """

    name: str
    again: str
    identity: str
    pack_format: str | None
    source_bytes: int
    tensors: tuple[TensorInfo, ...]

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "version": _VERSION,
            "name": self.name,
            "again": self.again,
            "identity": self.identity,
            "pack_format": self.pack_format,
            "source_bytes": self.source_bytes,
            "tensors": [[x.name, x.dtype, list(x.shape), x.file] for x in self.tensors],
        }

    @classmethod
    def read(cls, folder: Path) -> KeptRecord:
        """The record in a model's folder.

        Raises:
            CheckpointError: it cannot be read or breaks a rule. Facts: path, rule.
        """
        path = folder / RECORD
        raw = read_small_file(resolve_file(folder, RECORD), MAX_RECORD_BYTES, path)
        text = decode(raw, RECORD, path=path)
        data = parse_object(text, RECORD, path=path, max_depth=4)
        try:
            return cls._from_json(data)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{RECORD}: {quoted(str(error))}: missing, or of the wrong kind",
                hint="get the model again with qh-chat pull",
                path=str(path),
                rule="record",
            ) from error

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> KeptRecord:
        if data["version"] != _VERSION:
            raise ValueError("version")
        for key in ("name", "again", "identity"):
            if not isinstance(data[key], str):
                raise TypeError(key)
        if not isinstance(data["pack_format"], str | None):
            raise TypeError("pack_format")
        if type(data["source_bytes"]) is not int:
            raise TypeError("source_bytes")
        return cls(
            name=data["name"],
            again=data["again"],
            identity=data["identity"],
            pack_format=data["pack_format"],
            source_bytes=data["source_bytes"],
            tensors=tuple(_info(*x) for x in data["tensors"]),
        )


class DroppedSource:
    """A TensorSource of which only what the pack lacks can be read.

    Args:
        folder: of the model.

    Raises:
        CheckpointError: its files break a rule. Facts: path, rule.
    """

    def __init__(self, folder: Path) -> None:
        self.record = KeptRecord.read(folder)
        self.pack_path = resolve_file(folder, PACKED)
        self._kept = SafetensorsFile(resolve_file(folder, KEPT), folder / KEPT)
        self._infos = {x.name: x for x in self.record.tensors}
        for name in self._kept.names():
            info, told = self._kept.info(name), self._infos.get(name)
            if told is None or (told.dtype, told.shape) != (info.dtype, info.shape):
                raise CheckpointError(
                    f"{KEPT}: tensor {quoted(name)} is not the one in {RECORD}",
                    hint=f"get the model again: {self.record.again}",
                    path=str(folder / KEPT),
                    rule="record",
                    tensor=name,
                )

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether a folder is that of such a model."""
        return (folder / RECORD).exists()

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def names(self) -> tuple[str, ...]:
        """Names of all tensors that there were, sorted."""
        return tuple(sorted(self._infos))

    def info(self, name: str) -> TensorInfo:
        """See TensorSource."""
        if name not in self._infos:
            raise missing_tensor(name, RECORD)
        return self._infos[name]

    def holds(self, name: str) -> bool:
        """See TensorSource."""
        return name in self._kept

    def read(self, name: str) -> NDArray[Any]:
        """See TensorSource.

        Raises:
            CheckpointError: it is only in the pack. Facts: tensor, rule ("dropped").
        """
        self.info(name)
        if name not in self._kept:
            self.refuse(f"tensor {quoted(name)}", tensor=name)
        return self._kept.read(name)

    def identity(self) -> str:
        """That of the source."""
        return self.record.identity

    def check_unchanged(self) -> None:
        """See TensorSource."""
        self._kept.check_unchanged()

    def close(self) -> None:
        """Gives the file back as soon as no view is left."""
        self._kept.close()

    def refuse(self, wanted: str, **facts: Any) -> NoReturn:
        """Raise the error for something that only the source has."""
        record = self.record
        form = record.pack_format or "packed"
        size = gigabytes(record.source_bytes)
        raise CheckpointError(
            f"{record.name}: {wanted}: the source was removed; its {form} form is what there is",
            hint=f"{record.again} gets the source again ({size})",
            rule="dropped",
            model=record.name,
            pack_format=record.pack_format,
            source_bytes=record.source_bytes,
            **facts,
        )


def _info(name: str, dtype: str, shape: list[int], file: str) -> TensorInfo:
    if not all(isinstance(x, str) for x in (name, dtype, file)) or dtype not in ITEM_BYTES:
        raise ValueError("tensors")
    nbytes = ITEM_BYTES[dtype]
    for size in shape:
        if type(size) is not int or not 1 <= size <= 1 << 40:
            raise ValueError("tensors")
        nbytes *= size
    return TensorInfo(name, dtype, tuple(shape), nbytes, file)
