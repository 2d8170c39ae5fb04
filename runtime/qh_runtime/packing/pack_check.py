"""Which packs of a checkpoint there are, and whether one holds exactly what packing gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.checkpoints.layouts import Layout
from qh_runtime.checkpoints.layouts.dense import DenseLayout
from qh_runtime.checkpoints.reader import TensorSource
from qh_runtime.errors import CheckpointError, IntegrityError
from qh_runtime.packing.matrices import MatrixPlan, pack_formats, plan_matrices
from qh_runtime.packing.pack_file import PackFile, pack_key, write_order
from qh_runtime.packing.rows import packed_rows

__all__ = ["FoundPack", "check_pack", "find_packs"]


@dataclass(frozen=True)
class FoundPack:
    """A pack that a load of this checkpoint would take.

    Attributes:
        format: what `pack` was asked for; None for a checkpoint that is packed without asking.
        matrices: all of the model; key: of the pack.
    """

    format: str | None
    path: Path
    key: str
    matrices: tuple[MatrixPlan, ...]


def find_packs(
    spec: DecoderSpec, source: TensorSource, layout: Layout, packed_dir: Path
) -> Iterator[FoundPack]:
    """Yield the packs of a checkpoint that lie in a cache folder, sound as far as samples tell."""
    for name in (None, *pack_formats()):
        matrices = plan_matrices(spec, source, layout, name)
        order = write_order(matrices)
        if not order:
            continue
        key = pack_key(source.identity(), layout.key, order)
        path = packed_dir / f"{key}-{name or 'ternary'}.safetensors"
        if path.exists():
            try:
                PackFile(path, key, order)
            except CheckpointError:
                continue
            yield FoundPack(name, path, key, matrices)


def check_pack(
    spec: DecoderSpec,
    source: TensorSource,
    layout: Layout,
    pack: FoundPack,
    on_bytes: Callable[[int], None],
    stopped: Callable[[], bool],
    threads: int = 2,
) -> bool:
    """Return True if every byte is what packing the checkpoint gives now; False if stopped.

    Args:
        on_bytes: told of each piece that was compared; called from several threads.

    Raises:
        IntegrityError: a matrix differs. Facts: tensor, path.
        CheckpointError: the checkpoint cannot be packed.
    """
    order = write_order(pack.matrices)
    file = PackFile(pack.path, pack.key, order)
    tables = {spec.embedding, spec.head.name}
    failed = False

    def compare(matrix: MatrixPlan) -> None:
        nonlocal failed
        rows_of = DenseLayout() if matrix.module in tables else layout
        weights = rows_of.linear(source, matrix.module, matrix.shape)
        held = file.buffer(matrix.name)
        pieces = packed_rows(matrix.name, weights, matrix.format, lambda: failed or stopped())
        for offset, data in pieces:
            if not np.array_equal(held[offset : offset + data.nbytes], data):
                failed = True
                raise IntegrityError(
                    f"{matrix.name}: the packed weights are not those of the checkpoint",
                    hint=f"delete {pack.path.name} in the folder of packed weights; it is made "
                    "again by the next load",
                    tensor=matrix.name,
                    path=str(pack.path),
                )
            on_bytes(data.nbytes)

    with ThreadPoolExecutor(threads, thread_name_prefix="compare") as pool:
        for _ in pool.map(compare, order):
            pass
    return not stopped()
