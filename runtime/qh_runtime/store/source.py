"""The weights of a model's folder, whatever form they are kept in."""

from __future__ import annotations

from pathlib import Path

from qh_runtime.checkpoints import TensorSource, open_checkpoint
from qh_runtime.store.dropped_source import DroppedSource

__all__ = ["open_source"]


def open_source(folder: Path) -> TensorSource:
    """Open the weights in a folder, or what is left of them beside their packed form.

    Raises:
        CheckpointError: no readable weights, or a broken rule of a file.
    """
    if DroppedSource.is_in(folder):
        return DroppedSource(folder)
    return open_checkpoint(folder)
