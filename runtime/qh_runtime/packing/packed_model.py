"""PackedModel: everything the C++ decoder needs, from a spec, a checkpoint and a pack format."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from qh_kernels.decoder import DecoderWeights, LayerWeights, Matrix
from qh_runtime.architectures.base import DecoderSpec, LayerSpec, LinearSpec
from qh_runtime.checkpoints.layouts import Layout
from qh_runtime.checkpoints.layouts.dense import DenseLayout, dense_matrix, float_vector
from qh_runtime.checkpoints.reader import TensorSource
from qh_runtime.checkpoints.strict_json import is_text
from qh_runtime.errors import CheckpointError, StoreError
from qh_runtime.packing.matrices import HeadScan, MatrixPlan, check_tensors, plan_matrices
from qh_runtime.packing.pack_file import (
    FOLDER_KEY,
    SOURCE_KEY,
    PackFile,
    PackWriter,
    pack_key,
    write_order,
)
from qh_runtime.packing.released_pages import release_pages
from qh_runtime.packing.rows import packed_rows

__all__ = ["PackedModel", "Progress", "load_packed_model"]

_log = logging.getLogger(__name__)

# Called with (bytes done, bytes in all) from the calling thread, about ten times a second.
Progress = Callable[[int, int], None]
Origin = Literal["checkpoint", "mapped", "written", "memory"]
Buffers = dict[str, NDArray[np.uint8]]

_POLL_S = 0.1
# Each worker holds the codes of one matrix; more of them would only wait for memory and disk.
_MAX_THREADS = 8
_ALIGNMENT = 64


@dataclass(frozen=True)
class PackedModel:
    """The weights of a model in the kernels' own layouts.

    Attributes:
        weights: for the C++ decoder; keeps every mapping alive.
        matrices: what was planned, and is so now.
        origin: where the matrices lie: "checkpoint" (all mapped as they are), "mapped" (a pack from
            an earlier start), "written" (a pack made just now), "memory" (packed, not kept).
        pack_path: the pack's file, if there is one.
        reason: why a pack is only in memory; None otherwise.
        mapped_bytes: matrices that lie in mapped files.
        heap_bytes: matrices, norms and biases that lie in this process's memory.
        files: what the matrices are mapped from.
    """

    weights: DecoderWeights
    matrices: tuple[MatrixPlan, ...]
    origin: Origin
    pack_path: Path | None
    reason: str | None
    mapped_bytes: int
    heap_bytes: int
    files: tuple[TensorSource | PackFile, ...] = ()

    def check_unchanged(self) -> None:
        """Returns if every file that the matrices are mapped from still is what was opened.

        Raises:
            CheckpointError: facts path and rule ("changed").
        """
        for file in self.files:
            file.check_unchanged()


def load_packed_model(
    spec: DecoderSpec,
    source: TensorSource,
    layout: Layout,
    *,
    pack: str | None = None,
    head_scan: HeadScan = "auto",
    cache_folder: Path | None = None,
    memory_fallback: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    threads: int = 2,
    folder: Path | None = None,
    kept_pack: Path | None = None,
) -> PackedModel | None:
    """Bring a checkpoint into the kernels' layouts; a pack is made at most once.

    Args:
        pack, head_scan: see `plan_matrices`.
        cache_folder: where packs are kept; None packs in memory.
        memory_fallback: pack in memory where the cache cannot be written; `reason` says so.
        progress: told how far packing is; not called where nothing is packed.
        cancelled: asked about ten times a second.
        threads: workers that pack, at most 8.
        folder: of the checkpoint; noted in a pack that is written.
        kept_pack: a pack outside the cache that is taken if it is the one.

    Returns:
        The model, or None if it was cancelled; then nothing is left behind.

    Raises:
        CheckpointError: tensors are missing, superfluous, of another shape or type, or damaged, or
            a file changed meanwhile.
        PlanError: not a format to pack to.
        StoreError: the pack cannot be written and memory_fallback is False. Facts: path,
            required_bytes, and free_bytes where space is missing.
    """
    matrices = plan_matrices(spec, source, layout, pack, head_scan=head_scan)
    check_tensors(spec, source, layout)
    order = write_order(matrices)
    job = _Packing(source, layout, spec, order, progress, cancelled or (lambda: False), threads)
    job.folder, job.kept_pack, job.scan_in_memory = folder, kept_pack, head_scan != "unused"
    origin: Origin = "checkpoint"
    path, reason = None, None
    buffers: Buffers | None = {}
    if order:
        origin, buffers, path, reason = _packed_buffers(
            job, layout, cache_folder, pack, memory_fallback
        )
        if buffers is None:
            return None
    else:
        buffers = {}
    if head_scan == "unused":
        matrices = tuple(x for x in matrices if not x.is_scan)
    model = _assemble(spec, job, matrices, buffers, origin, path, reason)
    # Again: the system maps up to 2 MB around a norm that is read.
    for matrix in order:
        job.release(matrix)
    # What was copied from it (norms, biases) must be of the file that was checked.
    source.check_unchanged()
    return model


def _packed_buffers(
    job: _Packing,
    layout: Layout,
    cache_folder: Path | None,
    pack: str | None,
    memory_fallback: bool,
) -> tuple[Origin, Buffers | None, Path | None, str | None]:
    """(origin, buffers or None if cancelled, pack file, reason for memory)."""
    if cache_folder is None:
        return "memory", job.in_memory(), None, "no cache folder was given"
    key = pack_key(job.source.identity(), layout.key, job.matrices)
    path = cache_folder / f"{key}-{pack or 'ternary'}.safetensors"
    for place in (job.kept_pack, path):
        opened = None if place is None else _open_pack(place, key, job)
        if opened is not None:
            return "mapped", opened, place, None
    try:
        origin, buffers = _write_locked(path, key, job)
    except StoreError as error:
        if not memory_fallback:
            raise
        _log.warning("packing in memory: %s", error)
        return "memory", job.in_memory(), None, error.message
    return origin, buffers, path, None


def _open_pack(path: Path, key: str, job: _Packing) -> Buffers | None:
    """The buffers of a valid pack, or None where there is none."""
    if not path.exists():
        return None
    try:
        file = PackFile(path, key, job.matrices)
    except CheckpointError as error:
        _log.warning("packing again: %s", error)
        return None
    job.pack = file
    return {matrix.name: file.buffer(matrix.name) for matrix in job.matrices}


def _write_locked(path: Path, key: str, job: _Packing) -> tuple[Origin, Buffers | None]:
    """Write the pack under the lock of its name, unless another process has just done so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        while True:
            try:
                lock.acquire(timeout=_POLL_S)
                break
            except Timeout:
                if job.cancelled():
                    return "written", None
    except OSError as error:
        raise StoreError(
            f"{path.parent.name}: packed weights cannot be written: {error.strerror}",
            hint="check permissions, or go on without keeping the packed weights",
            path=str(path),
            reason=error.strerror,
        ) from error
    try:
        opened = _open_pack(path, key, job)
        if opened is not None:
            return "mapped", opened
        writer = PackWriter(path, key, job.matrices, job.about())
        try:
            done = job.run(writer.write)
            # A pack of other bytes than its key says would be found again and again.
            job.source.check_unchanged()
        except BaseException:
            writer.abandon()
            raise
        if not done:
            writer.abandon()
            return "written", None
        writer.commit()
    finally:
        lock.release()
    opened = _open_pack(path, key, job)
    if opened is None:
        raise StoreError(
            f"{path.name}: the pack that was just written cannot be read back",
            hint="check the disk",
            path=str(path),
        )
    return "written", opened


class _Packing:
    """One run over the matrices to pack, on a few threads (NumPy releases the GIL in its loops)."""

    def __init__(
        self,
        source: TensorSource,
        layout: Layout,
        spec: DecoderSpec,
        matrices: tuple[MatrixPlan, ...],
        progress: Progress | None,
        cancelled: Callable[[], bool],
        threads: int,
    ) -> None:
        self.source, self.layout, self.matrices = source, layout, matrices
        self.cancelled = cancelled
        self.pack: PackFile | None = None  # once one is opened
        self.folder: Path | None = None
        self.kept_pack: Path | None = None
        self.scan_in_memory = True
        self._tables = {spec.embedding, spec.head.name}
        self._progress, self._threads = progress, min(max(1, threads), _MAX_THREADS)

    def about(self) -> dict[str, str]:
        """What a pack is made from, for `du`."""
        folder = "" if self.folder is None else str(self.folder.absolute())
        # The header is text, and a folder's name need not be.
        named = folder if is_text(folder) else ""
        return {SOURCE_KEY: self.source.identity(), FOLDER_KEY: named}

    def in_memory(self) -> Buffers | None:
        """Packed buffers, 64-byte aligned, or None if cancelled."""
        if not self.scan_in_memory:
            self.matrices = tuple(x for x in self.matrices if not x.is_scan)
        buffers = {matrix.name: _aligned_empty(matrix.nbytes) for matrix in self.matrices}

        def write(name: str, offset: int, data: NDArray[np.uint8]) -> None:
            buffers[name][offset : offset + data.nbytes] = data

        if not self.run(write):
            return None
        for buffer in buffers.values():
            buffer.flags.writeable = False
        return buffers

    def run(self, write: Callable[[str, int, NDArray[np.uint8]], None]) -> bool:
        """Pack every matrix through `write`; False if cancelled."""
        total = sum(matrix.nbytes for matrix in self.matrices)
        stop = threading.Event()
        done_bytes = {matrix.name: 0 for matrix in self.matrices}

        def pack_one(matrix: MatrixPlan) -> None:
            weights = self._layout(matrix).linear(self.source, matrix.module, matrix.shape)
            for offset, data in packed_rows(matrix.name, weights, matrix.format, stop.is_set):
                write(matrix.name, offset, data)
                done_bytes[matrix.name] += data.nbytes
            self.release(matrix)

        with ThreadPoolExecutor(self._threads, thread_name_prefix="pack") as pool:
            # Largest first, so that the threads end together.
            largest = sorted(self.matrices, key=lambda matrix: -matrix.nbytes)
            pending: set[Future[None]] = {pool.submit(pack_one, matrix) for matrix in largest}
            try:
                while pending:
                    finished, pending = wait(pending, _POLL_S, FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    if self._progress is not None:
                        self._progress(sum(done_bytes.values()), total)
                    if self.cancelled():
                        return False
            finally:
                stop.set()
                for future in pending:
                    future.cancel()
        return True

    def release(self, matrix: MatrixPlan) -> None:
        """Let go of the memory of the checkpoint's tensors that a matrix is packed from."""
        if matrix.is_scan and not any(x.name == matrix.module for x in self.matrices):
            # The head itself is used where it lies.
            return
        for tensor in self._layout(matrix).tensors_of(self.source, matrix.module):
            if self.source.holds(tensor):
                release_pages(self.source.read(tensor))

    def _layout(self, matrix: MatrixPlan) -> Layout:
        return DenseLayout() if matrix.module in self._tables else self.layout


def _aligned_empty(size: int) -> NDArray[np.uint8]:
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % _ALIGNMENT
    return raw[skip : skip + size]


def _assemble(
    spec: DecoderSpec,
    job: _Packing,
    matrices: tuple[MatrixPlan, ...],
    buffers: Mapping[str, NDArray[np.uint8]],
    origin: Origin,
    path: Path | None,
    reason: str | None,
) -> PackedModel:
    source = job.source
    built: dict[str, Matrix] = {}
    heap = mapped = 0
    for plan in matrices:
        if plan.repacked:
            data, on_heap = buffers[plan.name], origin == "memory"
        else:
            data, on_heap = _dense_bytes(source, plan)
        built[plan.name] = Matrix(plan.format, data, plan.rows, plan.cols)
        heap, mapped = (heap + data.nbytes, mapped) if on_heap else (heap, mapped + data.nbytes)
    layers = [_layer(layer, spec, source, built) for layer in spec.layers]
    final_norm = float_vector(source, spec.final_norm, spec.hidden_size)
    weights = DecoderWeights(
        embedding=built[spec.embedding],
        head=built[spec.embedding if spec.tied_head else spec.head.name],
        final_norm=final_norm,
        layers=layers,
        head_scan=next((built[plan.name] for plan in matrices if plan.is_scan), None),
    )
    heap += final_norm.nbytes + sum(
        value.nbytes
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, np.ndarray)
    )
    files: list[TensorSource | PackFile] = [] if job.pack is None else [job.pack]
    if not all(plan.repacked for plan in matrices):
        files.append(source)
    return PackedModel(weights, matrices, origin, path, reason, mapped, heap, tuple(files))


def _dense_bytes(source: TensorSource, plan: MatrixPlan) -> tuple[NDArray[np.uint8], bool]:
    """The checkpoint's own bytes of a dense matrix, and whether they lie on the heap."""
    elements = dense_matrix(source, f"{plan.name}.weight", plan.shape).elements
    in_file = bool(source.info(f"{plan.name}.weight").file)
    if not elements.flags.aligned:
        # Some writers do not align their data; kernels read whole elements.
        elements, in_file = elements.copy(), False
    return elements.reshape(-1).view(np.uint8), not in_file


def _layer(
    layer: LayerSpec, spec: DecoderSpec, source: TensorSource, built: Mapping[str, Matrix]
) -> LayerWeights:
    def bias(linear: LinearSpec) -> NDArray[np.float32] | None:
        if not linear.bias:
            return None
        return float_vector(source, f"{linear.name}.bias", linear.out_features)

    def norm(name: str | None, size: int) -> NDArray[np.float32] | None:
        return None if name is None else float_vector(source, name, size)

    return LayerWeights(
        q=built[layer.q.name],
        k=built[layer.k.name],
        v=built[layer.v.name],
        o=built[layer.o.name],
        gate=built[layer.gate.name],
        up=built[layer.up.name],
        down=built[layer.down.name],
        attention_norm=float_vector(source, layer.attention_norm, spec.hidden_size),
        mlp_norm=float_vector(source, layer.mlp_norm, spec.hidden_size),
        q_bias=bias(layer.q),
        k_bias=bias(layer.k),
        v_bias=bias(layer.v),
        o_bias=bias(layer.o),
        gate_bias=bias(layer.gate),
        up_bias=bias(layer.up),
        down_bias=bias(layer.down),
        q_norm=norm(layer.q_norm, spec.head_dim),
        k_norm=norm(layer.k_norm, spec.head_dim),
        attention_sub_norm=norm(layer.attention_sub_norm, spec.num_attention_heads * spec.head_dim),
        mlp_sub_norm=norm(layer.mlp_sub_norm, spec.intermediate_size),
    )
