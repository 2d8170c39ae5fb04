"""A checkpoint folder in Hugging Face layout: one safetensors file, or shards and their index."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qh_runtime.checkpoints.files import read_small_file, resolve_file
from qh_runtime.checkpoints.reader import TensorInfo, TensorSource, missing_tensor
from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.checkpoints.shard_index import INDEX, MAX_INDEX_BYTES, check_shards, parse_index
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ShardedTensors", "open_checkpoint"]

SINGLE = "model.safetensors"
# Containers that run code when they are loaded, and containers that are not read.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def open_checkpoint(folder: Path) -> TensorSource:
    """Open the weights in a folder: `model.safetensors`, or the shards that its index names.

    Raises:
        CheckpointError: no readable weights, or a broken rule of the index or of a file.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{quoted(str(folder))}: expected a folder, found "
            f"{'a file' if folder.exists() else 'nothing'}",
            hint="give the folder that holds config.json and model.safetensors",
            path=str(folder),
        )
    if _exists(folder / SINGLE):
        return SafetensorsFile(resolve_file(folder, SINGLE), folder / SINGLE)
    if _exists(folder / INDEX):
        return ShardedTensors(folder)
    _no_weights(folder)


class ShardedTensors:
    """The shards that `model.safetensors.index.json` names, as one TensorSource.

    Index and shards must agree exactly: every listed tensor lies in the listed shard, and every
    tensor of a shard is listed for it.

    Raises:
        CheckpointError: a broken rule. Facts: path, rule, and tensor or shard.
    """

    def __init__(self, folder: Path) -> None:
        index = read_small_file(resolve_file(folder, INDEX), MAX_INDEX_BYTES, folder / INDEX)
        self._shard_of = parse_index(index, folder / INDEX)
        self._shards: dict[str, SafetensorsFile] = {}
        for shard in sorted(set(self._shard_of.values())):
            real = resolve_file(folder, shard)
            self._shards[shard] = SafetensorsFile(real, folder / shard)
        names = {shard: file.names() for shard, file in self._shards.items()}
        check_shards(self._shard_of, names, folder / INDEX)

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._shard_of))

    def info(self, name: str) -> TensorInfo:
        """See TensorSource."""
        return self._file(name).info(name)

    def holds(self, name: str) -> bool:
        """See TensorSource."""
        return name in self

    def read(self, name: str) -> NDArray[Any]:
        """See TensorSource."""
        return self._file(name).read(name)

    def identity(self) -> str:
        """A digest of the shards' identities."""
        digest = hashlib.blake2b(digest_size=20)
        for shard in sorted(self._shards):
            digest.update(f"{shard}\0{self._shards[shard].identity()}\0".encode())
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """See TensorSource."""
        for file in self._shards.values():
            file.check_unchanged()

    def close(self) -> None:
        """Gives the mappings back as soon as no view is left."""
        for file in self._shards.values():
            file.close()

    def _file(self, name: str) -> SafetensorsFile:
        shard = self._shard_of.get(name)
        if shard is None:
            raise missing_tensor(name, INDEX)
        return self._shards[shard]


def _exists(path: Path) -> bool:
    """Whether there is an entry, a dangling link included (its error is better than silence)."""
    return path.exists() or path.is_symlink()


def _no_weights(folder: Path) -> NoReturn:
    """Say what is there instead of safetensors."""
    found = sorted(entry.name for entry in folder.iterdir())[:10_000]
    pickles = [name for name in found if name.lower().endswith(_PICKLES)]
    shards = [name for name in found if name.endswith(".safetensors")]
    ggufs = [name for name in found if name.lower().endswith(".gguf")]
    if shards:
        message = f"found {quoted(shards[0])}, but neither {SINGLE} nor {INDEX}"
        hint = "download the missing file"
    elif pickles:
        message = f"only {quoted(pickles[0])}: such files run code when they are loaded"
        hint = "choose a checkpoint with safetensors files, or convert it where you trust it"
    elif ggufs:
        message = f"only {quoted(ggufs[0])}: GGUF is not read here"
        hint = "choose a checkpoint with safetensors files"
    else:
        message = f"expected {SINGLE} or {INDEX}, found neither"
        hint = "give the folder that holds config.json and model.safetensors"
    raise CheckpointError(
        f"{quoted(folder.name)}: {message}", hint=hint, path=str(folder), rule="no weights"
    )
