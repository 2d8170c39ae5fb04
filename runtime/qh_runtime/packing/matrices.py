"""Which matrix of a model gets which weight format, and how many bytes that takes.

Rules, in one place:

- Without a pack format every matrix keeps what the checkpoint holds: dense matrices are mapped
  where they lie, BitNet layers become `ternary`.
- Where they are too many for any cache and the processor takes five to a byte apart fast enough,
  they become `ternary5`, which is a fifth fewer bytes to read for each token. The processor alone
  decides, not the instruction set that somebody asks for: one model has one pack.
- With one, dense linear layers take it; layers that the checkpoint holds in codes keep their codes.
- Embedding and head take int8 when the pack format is a packed one (a tied int8 head is a large
  share of the bytes read per token, and 8 bits lose nothing that 4-bit layers would not), else the
  dense pack format itself.
- Where the layers are packed, a large head is packed once more in 4 bits (`DecoderWeights`): it is
  read for every token, and a third of the bytes of a ternary model.
- A dense model is never rounded to ternary: that needs training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from qh_kernels import isa as instruction_sets
from qh_runtime.architectures.base import DecoderSpec, LinearSpec
from qh_runtime.checkpoints.layouts import Layout
from qh_runtime.checkpoints.layouts.dense import DenseLayout, check_shape, dense_format
from qh_runtime.checkpoints.reader import TensorSource
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError, PlanError
from qh_runtime.formats import get, names

__all__ = ["HeadScan", "MatrixPlan", "check_tensors", "pack_formats", "plan_matrices"]

# "unused" packs what "auto" does, so that there is one pack, and leaves the scan in its file.
HeadScan = Literal["auto", "unused", "always"]

# Tensors that old exporters wrote and no decoder reads.
_IGNORED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|rotary_pos_emb\.inv_freq)$")
_HEAD = "lm_head.weight"
_SCAN_FORMAT = "int4_g32"
# Below this a head is a small share of a model.
_SCAN_VOCAB = 16384
# Ternary layers of so many bytes at two bits come from memory and not from a cache.
_DENSE_TERNARY_BYTES = 256 << 20
# With tables of 128 bytes in registers: 25 GB/s and core, more than a core's share of the memory.
# Without, 10 to 15, where two bits give 27 to 43 (Zen 4, November 2026; kernels/README.md).
_DENSE_TERNARY_ISAS = frozenset({"avx512vbmi", "amx"})


@dataclass(frozen=True)
class MatrixPlan:
    """One matrix of a model, before its data is read.

    Attributes:
        name: module path in the checkpoint; that of the scan of a head ends in ".scan".
        module: module path; `<module>.weight` or what the layout has in its place is read.
        format: weight format in memory.
        rows, cols: (out_features, in_features).
        nbytes: size in that format.
        repacked: False where the checkpoint's own bytes are used.
    """

    name: str
    module: str
    format: str
    rows: int
    cols: int
    nbytes: int
    repacked: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return (self.rows, self.cols)

    @property
    def is_scan(self) -> bool:
        """The head once more in few bits, beside the head."""
        return self.name != self.module


def pack_formats() -> tuple[str, ...]:
    """Weight formats that a dense model can be packed to."""
    return tuple(x for x in names() if get(x).family not in ("ternary", "codebook"))


def plan_matrices(
    spec: DecoderSpec,
    source: TensorSource,
    layout: Layout,
    pack: str | None = None,
    *,
    head_scan: HeadScan = "auto",
) -> tuple[MatrixPlan, ...]:
    """All matrices: embedding, linear layers in the order they run, head (absent if tied), scan.

    Args:
        pack: a name of `pack_formats()`, or None.
        head_scan: "always" has a scan of any head; else see the rules above.

    Raises:
        PlanError: not a format to pack to. Facts: format, known.
        CheckpointError: a tensor is missing, or has another shape or type.
    """
    if pack is not None and pack not in pack_formats():
        raise PlanError(
            f"pack: expected one of {', '.join(pack_formats())}, found {quoted(pack)}",
            hint="ternary weights need a model that was trained ternary"
            if pack.startswith("ternary")
            else "codebooks need a model that was quantized with them"
            if pack in names()
            else "choose one of these",
            format=pack,
            known=pack_formats(),
        )
    table_pack = "int8" if pack is not None and get(pack).family != "dense" else pack
    dense = DenseLayout()
    embedding = LinearSpec(spec.embedding, spec.vocab_size, spec.hidden_size)
    planned = [_plan(embedding, source, dense, table_pack)]
    for layer in spec.layers:
        planned.extend(_plan(linear, source, layout, pack) for linear in layer.linears)
    if not spec.tied_head:
        planned.append(_plan(spec.head, source, dense, table_pack))
    planned = _with_dense_ternary(planned)
    scan = _scan(spec, planned[0] if spec.tied_head else planned[-1])
    packs = any(x.repacked for x in planned)
    if head_scan == "always" or (packs and spec.vocab_size >= _SCAN_VOCAB):
        planned.append(scan)
    return tuple(planned)


def _with_dense_ternary(planned: list[MatrixPlan]) -> list[MatrixPlan]:
    """The same with ternary5 in place of ternary where that is faster."""
    total = sum(x.nbytes for x in planned if x.format == "ternary")
    if total < _DENSE_TERNARY_BYTES:
        return planned
    if _DENSE_TERNARY_ISAS.isdisjoint(instruction_sets.available()):
        return planned
    dense = get("ternary5")
    return [
        replace(x, format=dense.name, nbytes=dense.nbytes(x.shape)) if x.format == "ternary" else x
        for x in planned
    ]


def _scan(spec: DecoderSpec, head: MatrixPlan) -> MatrixPlan:
    nbytes = get(_SCAN_FORMAT).nbytes(head.shape)
    return MatrixPlan(f"{head.name}.scan", head.name, _SCAN_FORMAT, *head.shape, nbytes, True)


def check_tensors(spec: DecoderSpec, source: TensorSource, layout: Layout) -> None:
    """Return normally if spec and source have the same tensors, as far as headers tell.

    Matrices are the part of `plan_matrices`; here every norm and bias must be there with its shape
    and a float type, and every tensor of the source must have its place in the spec. One without a
    place (a bias that the config denies, a layer too many) means that the model would not compute
    what its weights were trained for.

    Raises:
        CheckpointError: facts tensor, and expected and found for a shape.
        UnsupportedTensorError: not a float type that is read. Facts: tensor, dtype.
    """
    used = {f"{spec.embedding}.weight"}
    if not spec.tied_head:
        used.add(f"{spec.head.name}.weight")
    for layer in spec.layers:
        for linear in layer.linears:
            used.update(layout.tensors_of(source, linear.name))
    for name, size in _vectors(spec):
        info = source.info(name)
        dense_format(info)
        check_shape(info, (size,))
        used.add(name)
    for name in source.names():
        tied_copy = spec.tied_head and name == _HEAD
        if name not in used and not tied_copy and not _IGNORED.search(name):
            raise CheckpointError(
                f"tensor {quoted(name)} has no place in the model that config.json describes",
                hint="config.json and weights belong to different models, or the model has parts "
                "that are not supported",
                tensor=name,
            )


def _vectors(spec: DecoderSpec) -> Iterator[tuple[str, int]]:
    """(tensor, size) of every norm and bias."""
    for layer in spec.layers:
        for linear in layer.linears:
            if linear.bias:
                yield f"{linear.name}.bias", linear.out_features
        for norm, size in (
            (layer.attention_norm, spec.hidden_size),
            (layer.mlp_norm, spec.hidden_size),
            (layer.q_norm, spec.head_dim),
            (layer.k_norm, spec.head_dim),
            (layer.attention_sub_norm, spec.num_attention_heads * spec.head_dim),
            (layer.mlp_sub_norm, spec.intermediate_size),
        ):
            if norm is not None:
                yield norm, size
    yield spec.final_norm, spec.hidden_size


def _plan(linear: LinearSpec, source: TensorSource, layout: Layout, pack: str | None) -> MatrixPlan:
    shape = (linear.out_features, linear.in_features)
    layout.check(source, linear.name, shape)
    held = layout.format_of(source, linear.name)
    chosen = pack if pack is not None and get(held).family == "dense" else held
    repacked = chosen != held or get(held).family != "dense"
    nbytes = get(chosen).nbytes(shape)
    return MatrixPlan(linear.name, linear.name, chosen, *shape, nbytes, repacked)
