"""Opens a checkpoint folder for evaluation: as C++ decoder in a weight format, and as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qh_kernels.decoder import Decoder, KvType
from qh_runtime.architectures import DecoderSpec, decoder_shape, spec_from_config
from qh_runtime.checkpoints.config import read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.evaluation.engines import NativeEngine
from qh_runtime.packing.matrices import HeadScan
from qh_runtime.packing.packed_model import load_packed_model
from qh_runtime.store.source import open_source

__all__ = ["EvaluatedModel", "open_model"]


@dataclass(frozen=True)
class EvaluatedModel:
    """A model ready to be measured.

    Attributes:
        weights_bits: bits of all matrices per weight, scales and padding included.
    """

    spec: DecoderSpec
    engine: NativeEngine
    decoder: Decoder
    weights_bits: float


def open_model(
    folder: Path,
    *,
    pack: str | None,
    head_scan: HeadScan = "auto",
    context_length: int,
    threads: int = 1,
    exact: bool = False,
    kv_type: KvType = "f16",
    isa: str | None = None,
) -> EvaluatedModel:
    """The C++ decoder of a checkpoint; packed in memory, nothing is written.

    Args:
        pack, head_scan: see `plan_matrices`.
        exact: float32 activations and KV cache.
        kv_type: type of the KV cache where `exact` does not say.

    Raises:
        QhError: the checkpoint, the pack format or an option is refused.
    """
    config = read_config(folder).model
    spec = spec_from_config(config)
    source = open_source(folder)
    packed = load_packed_model(
        spec, source, layout_for(config), pack=pack, head_scan=head_scan, threads=threads
    )
    assert packed is not None  # only a cancelled load returns None
    decoder = Decoder(
        decoder_shape(spec),
        packed.weights,
        context_length=context_length,
        threads=threads,
        exact=exact,
        kv_type=kv_type,
        isa=isa,
    )
    bits = 8 * sum(matrix.nbytes for matrix in packed.matrices) / spec.parameters
    return EvaluatedModel(spec, NativeEngine(decoder), decoder, bits)
