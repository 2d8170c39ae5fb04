"""The JSON files beside the weights: config.json and its companions, read strictly.

Limits: 1 MiB per file (tokenizer_config.json 4 MiB: it may hold long chat templates and thousands
of added tokens), 32 levels. Values are checked by whoever reads them: the architectures their own
keys, `read_key` here for the rest. `auto_map` (code in the checkpoint) is never followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qh_runtime.checkpoints.files import read_small_file, resolve_file
from qh_runtime.checkpoints.strict_json import decode, parse_object, quoted
from qh_runtime.errors import CheckpointError

__all__ = ["CheckpointConfig", "read_config", "read_json_file", "read_key"]

MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_CONFIG_BYTES = 4 << 20
MAX_DEPTH = 32

_T = TypeVar("_T")


@dataclass(frozen=True)
class CheckpointConfig:
    """What the JSON files of a folder say; an absent optional file is an empty object.

    Attributes:
        model: config.json.
        generation: generation_config.json.
        tokenizer: tokenizer_config.json.
    """

    model: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


def read_config(folder: Path) -> CheckpointConfig:
    """Read config.json (required), generation_config.json and tokenizer_config.json of a folder.

    Raises:
        CheckpointError: a file is missing, too large, not JSON, or breaks a rule of strict JSON.
    """
    return CheckpointConfig(
        model=read_json_file(folder, "config.json", MAX_CONFIG_BYTES, required=True),
        generation=read_json_file(folder, "generation_config.json", MAX_CONFIG_BYTES),
        tokenizer=read_json_file(folder, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES),
    )


def read_json_file(
    folder: Path, name: str, limit_bytes: int = MAX_CONFIG_BYTES, *, required: bool = False
) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint folder; {} where it is absent and not required.

    Raises:
        CheckpointError: facts path and rule.
    """
    path = folder / name
    if not required and not path.exists() and not path.is_symlink():
        return {}
    data = read_small_file(resolve_file(folder, name), limit_bytes, path)
    return parse_object(decode(data, name, path=path), name, path=path, max_depth=MAX_DEPTH)


def read_key(
    config: Mapping[str, Any], kind: type[_T], key: str, default: _T, *, where: str = "config.json"
) -> _T:
    """The value of a key, of this type; the default where it is absent or null.

    An integer is accepted where a float is asked for; true and false are no numbers.

    Raises:
        CheckpointError: another type. Facts: key, expected, found.
    """
    value = config.get(key)
    if value is None:
        return default
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)  # type: ignore[call-arg]
    if not good:
        raise CheckpointError(
            f"{where}: {quoted(key)}: expected {kind.__name__}, found {quoted(value)}",
            hint="compare it with the file that the model's author published",
            key=key,
            expected=kind.__name__,
            found=quoted(value),
        )
    found: _T = value
    return found
