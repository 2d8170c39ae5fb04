"""What the kernels round in codebook formats, in nats, on models with k-means codebooks.

The base is the same decoder with the unpacked float32 weights of the same codebooks in float16, so
that the loss of quantizing to codebooks is on both sides.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qh_kernels.decoder import Decoder, DecoderWeights, Matrix
from qh_runtime import formats
from qh_runtime.architectures import decoder_shape
from qh_runtime.evaluation.divergence import measure_divergence
from qh_runtime.evaluation.engines import NativeEngine
from qh_runtime.evaluation.windows import Sliding
from qh_runtime.formats.families.codebook import CodebookFormat
from qh_runtime.formats.families.kmeans import residual_codebooks
from qh_runtime.tokenizers.from_hf import load_tokenizer
from qh_runtime.training.books import read_book
from tests.support.native_model import NativeModel

_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
# Mean KL at most: of tables or vectors (8 tokens at a time), of 64 at a time.
_LIMITS = {
    "aqlm_2x8_g8": (4e-4, 1e-3),
    "aqlm_1x16_g8": (5e-4, 5e-4),
    "aqlm_1x8_g8": (6e-4, 1e-3),
    "aqlm_8x8_g32": (4e-4, 2.5e-3),
}


def in_codebooks(spec: CodebookFormat, weights: DecoderWeights) -> tuple[DecoderWeights, ...]:
    """(the weights with dense linear layers of codebooks, the same packed)."""
    dense, packed = [], []
    for layer in weights.layers:
        plain, coded = {}, {}
        for part in _LINEARS:
            held: Matrix = getattr(layer, part)
            shape = (held.rows, held.cols)
            values = formats.get(held.format).unpack(held.data, shape)
            sizes = np.abs(values).max(axis=1).astype(np.float16)
            vectors = (values / sizes.astype(np.float32)[:, None]).reshape(-1, spec.vector)
            codes, books = residual_codebooks(vectors, spec.n_codebooks, 1 << spec.code_bits)
            books = books.astype(np.float16)
            codes = codes.reshape(held.rows, -1, spec.n_codebooks)
            total = sum(
                books[m].astype(np.float32)[codes[:, :, m]] for m in range(spec.n_codebooks)
            )
            restored = np.reshape(total, shape) * sizes.astype(np.float32)[:, None]
            plain[part] = Matrix("f32", formats.get("f32").pack(restored), *shape)
            data = spec.pack_codes(*spec.from_float(codes, books, sizes), shape)
            coded[part] = Matrix(spec.name, data, *shape)
        dense.append(replace(layer, **plain))
        packed.append(replace(layer, **coded))
    return replace(weights, layers=tuple(dense)), replace(weights, layers=tuple(packed))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "n_tokens", [200, pytest.param(4000, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize("name", _LIMITS)
def test_divergence_of_rounding(name: str, n_tokens: int, prose7m: Path, shared_data: Path) -> None:
    spec = formats.get(name)
    assert isinstance(spec, CodebookFormat)
    model = NativeModel.from_folder(prose7m, "f32")
    dense, packed = in_codebooks(spec, model.packed.weights)
    paths = sorted((shared_data / "data" / "text" / "gutenberg").glob("*_*.txt"))
    books = paths[: 1 if n_tokens < 1000 else 30]
    text = "\n".join(line for path in books for line in read_book(path).held_out[:9])
    tokenizer = load_tokenizer(prose7m)
    tokens = tokenizer.encode_text(text)[:n_tokens]
    assert len(tokens) == n_tokens
    assert tokenizer.bos_id is not None
    sliding = Sliding(256, 128, (tokenizer.bos_id,))

    def decoder(weights: DecoderWeights, batch: int, exact: bool = False) -> Decoder:
        return Decoder(
            decoder_shape(model.spec),
            weights,
            context_length=256,
            threads=1,
            batch_tokens=batch,
            exact=exact,
        )

    found = {}
    with decoder(dense, 64) as base:
        for way, batch, exact in (("exact", 64, True), ("few", 8, False), ("many", 64, False)):
            with decoder(packed, batch, exact) as other:
                found[way] = measure_divergence(
                    NativeEngine(base), NativeEngine(other), tokens, sliding
                )
    for way, divergence in found.items():
        print(
            f"{name} {way:5}: mean {divergence.mean:.6f}, 99 % {divergence.p99:.5f}, "
            f"same top token {divergence.top1_agreement:.4f}"
        )
    few, many = _LIMITS[name]
    assert found["few"].mean < few
    assert found["many"].mean < many
    assert found["exact"].mean < (2e-4 if spec.code_bits > 8 else 1e-5)
