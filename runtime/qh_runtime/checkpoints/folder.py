"""A checkpoint folder in Hugging Face layout: one safetensors file, or shards and their index."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from qh_runtime.checkpoints.files import read_small_file, resolve_file
from qh_runtime.checkpoints.reader import TensorInfo, TensorSource, missing_tensor
from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.checkpoints.strict_json import decode, parse_object, quoted
from qh_runtime.errors import CheckpointError

__all__ = ["ShardedTensors", "open_checkpoint"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32 << 20
MAX_SHARDS = 1024
MAX_INDEX_ITEMS = 1 << 18
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
# Containers that run code when they are loaded, and containers that are not read.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HINT = "download the checkpoint again"


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
        return SafetensorsFile(resolve_file(folder, SINGLE))
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
        self._index = folder / INDEX
        self._shard_of = self._read_index(folder)
        self._shards: dict[str, SafetensorsFile] = {}
        for shard in sorted(set(self._shard_of.values())):
            self._shards[shard] = SafetensorsFile(resolve_file(folder, shard))
        for shard, file in self._shards.items():
            for name in file.names():
                listed = self._shard_of.get(name)
                if listed != shard:
                    found = "does not list it" if listed is None else f"lists it in {listed}"
                    self._fail(
                        "wrong shard",
                        f"tensor {quoted(name)} lies in {shard}, but the index {found}",
                        tensor=name,
                        shard=shard,
                    )
        for name, shard in self._shard_of.items():
            if name not in self._shards[shard]:
                self._fail(
                    "missing tensor",
                    f"tensor {quoted(name)} is listed in {shard}, which does not hold it",
                    tensor=name,
                    shard=shard,
                )

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._shard_of))

    def info(self, name: str) -> TensorInfo:
        """See TensorSource."""
        return self._file(name).info(name)

    def read(self, name: str) -> NDArray[Any]:
        """See TensorSource."""
        return self._file(name).read(name)

    def identity(self) -> str:
        """A digest of the shards' identities."""
        digest = hashlib.blake2b(digest_size=20)
        for shard in sorted(self._shards):
            digest.update(f"{shard}\0{self._shards[shard].identity()}\0".encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Gives the mappings back as soon as no view is left."""
        for file in self._shards.values():
            file.close()

    def _file(self, name: str) -> SafetensorsFile:
        shard = self._shard_of.get(name)
        if shard is None:
            raise missing_tensor(name, INDEX)
        return self._shards[shard]

    def _fail(self, rule: str, message: str, **facts: Any) -> NoReturn:
        raise CheckpointError(
            f"{INDEX}: {message}", hint=_HINT, path=str(self._index), rule=rule, **facts
        )

    def _read_index(self, folder: Path) -> dict[str, str]:
        """Tensor name -> shard file name, checked."""
        data = read_small_file(resolve_file(folder, INDEX), MAX_INDEX_BYTES)
        if data.count(b",") + data.count(b"{") + data.count(b"[") > MAX_INDEX_ITEMS:
            self._fail("index items", f"more than {MAX_INDEX_ITEMS} items")
        text = decode(data, INDEX, path=self._index)
        index = parse_object(text, INDEX, path=self._index, max_depth=3)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            self._fail("weight_map", "weight_map: expected an object of tensor and file names")
        shards: set[str] = set()
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or ".." in shard:
                self._fail(
                    "shard name",
                    f"tensor {quoted(name)}: expected a plain .safetensors file name, "
                    f"found {quoted(shard)}",
                    tensor=name,
                )
            shards.add(shard)
        if len(shards) > MAX_SHARDS:
            self._fail("shard count", f"expected at most {MAX_SHARDS} shards, found {len(shards)}")
        return weight_map


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
