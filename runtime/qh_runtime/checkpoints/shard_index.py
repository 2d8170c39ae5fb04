"""`model.safetensors.index.json`: which shard holds which tensor, checked against the shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from qh_runtime.checkpoints.strict_json import decode, parse_object, quoted
from qh_runtime.errors import CheckpointError

__all__ = ["INDEX", "MAX_INDEX_BYTES", "check_shards", "parse_index"]

INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 32 << 20
MAX_SHARDS = 1024
MAX_INDEX_ITEMS = 1 << 18
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


def parse_index(data: bytes, path: Path) -> dict[str, str]:
    """Return tensor name to shard file name.

    Args:
        data: the file's content.
        path: a fact of the errors.

    Raises:
        CheckpointError: a broken rule. Facts: path, rule, and tensor where one is to blame.
    """
    if data.count(b",") + data.count(b"{") + data.count(b"[") > MAX_INDEX_ITEMS:
        _fail(path, "index items", f"more than {MAX_INDEX_ITEMS} items")
    text = decode(data, INDEX, path=path)
    index = parse_object(text, INDEX, path=path, max_depth=3)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _fail(path, "weight_map", "weight_map: expected an object of tensor and file names")
    shards: set[str] = set()
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or ".." in shard:
            _fail(
                path,
                "shard name",
                f"tensor {quoted(name)}: expected a plain .safetensors file name, "
                f"found {quoted(shard)}",
                tensor=name,
            )
        shards.add(shard)
    if len(shards) > MAX_SHARDS:
        _fail(path, "shard count", f"expected at most {MAX_SHARDS} shards, found {len(shards)}")
    return weight_map


def check_shards(
    shard_of: Mapping[str, str], tensors_of: Mapping[str, Iterable[str]], path: Path
) -> None:
    """Return normally if index and shards agree exactly.

    Every listed tensor lies in the listed shard, and every tensor of a shard is listed for it.

    Args:
        shard_of: of `parse_index`.
        tensors_of: shard file name to the names of its tensors, for every shard of the index.
        path: of the index.

    Raises:
        CheckpointError: facts path, rule, tensor, shard.
    """
    held: set[str] = set()
    for shard, names in tensors_of.items():
        for name in names:
            listed = shard_of.get(name)
            if listed != shard:
                found = "does not list it" if listed is None else f"lists it in {listed}"
                _fail(
                    path,
                    "wrong shard",
                    f"tensor {quoted(name)} lies in {shard}, but the index {found}",
                    tensor=name,
                    shard=shard,
                )
            held.add(name)
    for name, shard in shard_of.items():
        if name not in held:
            _fail(
                path,
                "missing tensor",
                f"tensor {quoted(name)} is listed in {shard}, which does not hold it",
                tensor=name,
                shard=shard,
            )


def _fail(path: Path, rule: str, message: str, **facts: Any) -> NoReturn:
    raise CheckpointError(
        f"{INDEX}: {message}",
        hint="download the checkpoint again",
        path=str(path),
        rule=rule,
        **facts,
    )
