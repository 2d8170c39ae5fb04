"""The weights of a model's folder, whatever form they are kept in."""

from __future__ import annotations

from pathlib import Path

from qh_runtime.checkpoints import TensorSource, open_checkpoint

__all__ = ["open_source"]


def open_source(folder: Path) -> TensorSource:
    """Open the weights in a folder.

    Raises:
        CheckpointError: no readable weights, or a broken rule of a file.
    """
    return open_checkpoint(folder)
