"""The weights of a model's folder, whatever form they are kept in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qh_runtime.checkpoints import TensorSource, open_checkpoint
from qh_runtime.options import LoadOptions
from qh_runtime.store.dropped_source import DroppedSource, KeptRecord

__all__ = ["kept_pack", "open_source", "options_for"]


def open_source(folder: Path) -> TensorSource:
    """Open the weights in a folder, or what is left of them beside their packed form.

    Raises:
        CheckpointError: no readable weights, or a broken rule of a file.
    """
    if DroppedSource.is_in(folder):
        return DroppedSource(folder)
    return open_checkpoint(folder)


def options_for(folder: Path, options: LoadOptions) -> LoadOptions:
    """Return the options; where no pack is asked for, with the one that stands for the source.

    Raises:
        CheckpointError: what is left of the source breaks a rule.
    """
    if options.pack is not None or not DroppedSource.is_in(folder):
        return options
    return replace(options, pack=KeptRecord.read(folder).pack_format)


def kept_pack(source: TensorSource) -> Path | None:
    """Return the pack that stands for a source; None where the source is there."""
    return source.pack_path if isinstance(source, DroppedSource) else None
