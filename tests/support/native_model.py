"""One checkpoint in both executors: the C++ decoder through the real loader, and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import Decoder, TraceRecord
from qh_runtime.architectures import DecoderSpec, decoder_shape, spec_from_config
from qh_runtime.checkpoints.config import read_config
from qh_runtime.checkpoints.folder import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.checkpoints.memory_tensors import MemoryTensors
from qh_runtime.checkpoints.reader import TensorSource
from qh_runtime.packing.packed_model import PackedModel, load_packed_model
from qh_runtime.reference.decoder import ActivationHook, ReferenceDecoder, Tape
from qh_runtime.reference.ops import QuantizedActivations
from qh_runtime.reference.weights import (
    CodedMatrix,
    Matrix,
    ReferenceWeights,
    dense_weights,
    quantized_matrix,
)
from tests.support.tiny_checkpoint import reference_weights

__all__ = ["NativeModel", "tape_of"]

# Which linear layers read the codes that a trace record has under the name of the first.
_SHARED = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True)
class NativeModel:
    """A loaded checkpoint.

    Attributes:
        packed: as the loader made it.
        reference: the same weights, derived without the loader.
        exact: those that are multiplied with float32 activations.
    """

    spec: DecoderSpec
    packed: PackedModel
    reference: ReferenceWeights
    exact: ReferenceWeights

    @classmethod
    def from_folder(cls, folder: Path, pack: str | None = None) -> NativeModel:
        """The checkpoint of a folder, dense linear layers in a weight format."""
        config = read_config(folder).model
        return cls._load(config, open_checkpoint(folder), reference_weights(folder), pack)

    @classmethod
    def from_tensors(
        cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], pack: str | None = None
    ) -> NativeModel:
        """A checkpoint in memory; nothing is written."""
        return cls._load(config, MemoryTensors(tensors), dense_weights(tensors), pack)

    @classmethod
    def _load(
        cls,
        config: Mapping[str, Any],
        source: TensorSource,
        plain: ReferenceWeights,
        pack: str | None,
    ) -> NativeModel:
        spec = spec_from_config(config)
        packed = load_packed_model(spec, source, layout_for(config), pack=pack, threads=1)
        assert packed is not None
        weights = {exact: _in_formats(packed, plain, exact) for exact in (False, True)}
        return cls(spec, packed, weights[False], weights[True])

    def decoder(self, **options: Any) -> Decoder:
        """A C++ decoder; one thread and 256 positions unless said otherwise."""
        options = {"context_length": 256, "threads": 1, **options}
        return Decoder(decoder_shape(self.spec), self.packed.weights, **options)

    def reference_decoder(
        self, *, exact: bool = False, hook: ActivationHook | None = None, **options: Any
    ) -> ReferenceDecoder:
        """The reference decoder. exact: float32 activations for all formats but ternary."""
        weights = self.exact if exact else self.reference
        return ReferenceDecoder(self.spec, weights, hook=hook, **options)


def _in_formats(packed: PackedModel, plain: ReferenceWeights, exact: bool) -> ReferenceWeights:
    matrices: dict[str, Matrix] = {}
    for plan in packed.matrices:
        matrix = plain.matrices[plan.name]
        if not isinstance(matrix, CodedMatrix):
            keep = exact and plan.format != "ternary"
            matrix = quantized_matrix(plan.format, matrix.values, exact=keep)
        matrices[plan.name] = matrix
    return ReferenceWeights(matrices, plain.vectors)


def tape_of(spec: DecoderSpec, trace: list[TraceRecord]) -> Tape:
    """What the C++ decoder recorded, as a tape of the reference decoder."""
    tape: Tape = []
    for record in trace:
        size = record.codes.shape[1] if record.per_token else 32
        codes = QuantizedActivations(np.array(record.codes), np.array(record.scales), size)
        if record.name == "head":
            tape.append((spec.head.name, codes))
            continue
        layer = spec.layers[record.layer]
        tape += [(getattr(layer, name).name, codes) for name in _SHARED[record.name]]
    return tape
