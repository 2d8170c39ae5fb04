"""Opening files that strangers made: no links out of the folder, no pipes, no growth."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError

__all__ = ["open_regular", "read_small_file", "resolve_file"]

_HINT = "download the checkpoint again"


@contextmanager
def open_regular(path: Path, named: Path | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a regular file for reading; yields it and its size.

    The last part of the path must not be a symbolic link (resolve it first, where one is allowed),
    and a pipe or device is refused without waiting for it.

    Args:
        named: what errors call it: the file of the model, where a link led to `path`.

    Raises:
        CheckpointError: it cannot be opened, is not a regular file, or changed while it was open.
    """
    shown = named or path
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{quoted(shown.name)}: cannot be opened: {reason}",
            hint="check that the file exists and may be read",
            path=str(shown),
            reason=reason,
        ) from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise CheckpointError(
                f"{quoted(shown.name)}: expected a regular file, found a folder, pipe or device",
                hint="choose the folder of a checkpoint",
                path=str(shown),
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file, before.st_size
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise CheckpointError(
                f"{quoted(shown.name)}: changed while it was opened",
                hint="wait until the download is complete",
                path=str(shown),
            )
    finally:
        os.close(descriptor)


def resolve_file(folder: Path, name: str) -> Path:
    """The real path of a file of a checkpoint folder.

    A symbolic link is followed only where it stays inside the folder, or, for a folder
    `<repository>/snapshots/<revision>` of a hub cache, inside that `<repository>/blobs`.

    Raises:
        CheckpointError: no such file, or a link that leads elsewhere. Facts: path.
    """
    path = folder / name
    try:
        root = folder.resolve(strict=True)
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{quoted(name)}: expected a file in {quoted(folder.name)}, not found",
            hint=_HINT,
            path=str(path),
            rule="missing file",
        ) from error
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{quoted(name)}: a symbolic link that leaves the checkpoint folder",
            hint="copy the file into the folder",
            path=str(path),
            rule="link",
        )
    return real


def read_small_file(path: Path, limit: int, named: Path | None = None) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes.

    Args:
        named: as for `open_regular`.

    Raises:
        CheckpointError: it cannot be read, is no regular file or is larger. Facts: path.
    """
    shown = named or path
    with open_regular(path, named) as (file, size):
        if size > limit:
            raise CheckpointError(
                f"{quoted(shown.name)}: expected at most {limit} bytes, found {size}",
                hint="download the file again",
                path=str(shown),
                expected=limit,
                found=size,
            )
        # One byte more than the size shows a file that grew meanwhile.
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(
            f"{quoted(shown.name)}: grew beyond {limit} bytes while it was read", path=str(shown)
        )
    return data
