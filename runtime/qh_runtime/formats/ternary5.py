"""ternary5: weights -1, 0, 1 times a scale, five to a byte: 1.6 bits each; else as `ternary`.

Tile (16 rows, Kp = K padded to 20; little-endian), a multiple of 64 bytes:

    Kp / 20 blocks of 64 bytes: byte 4r + t of block b is t0 + 3 t1 + 9 t2 + 27 t3 + 82 t4, where
        ti (0, 1 or 2) is code + 1 of column 20b + 4i + t
    f32 scale[16]                                                     w = scale[r] * code

The last digit counts 82 and not 81, so that half a byte's value, seven bits, tells it: with tables
of 128 bytes in registers (AVX-512 VBMI) two lookups take a byte apart. Bytes that leave 81 or more
without the last digit (81, 163, 245 and above) are never written.

A model of 2 billion ternary weights reads 20 % less for each token than at two bits, for more
arithmetic: kernels/README.md says where which of the two is faster.

Quantizer, scales and bound: ternary.py. Source: Ma et al. 2024, "The Era of 1-bit LLMs" (BitNet
b1.58); five to a byte is the densest packing that ends with the byte, 243 of 256 values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qh_runtime.formats.base import Codes, Shape
from qh_runtime.formats.families.tiled import Words, pad_codes
from qh_runtime.formats.ternary import TernaryFormat

__all__ = ["FORMAT"]

_FACTORS = (1, 3, 9, 27, 82)


def _digits_of_bytes() -> Codes:
    """int8 (256, 5): codes of every byte; those that are never written are 2."""
    values = np.arange(256)
    top = np.minimum(values // 82, 2)
    rest = values - 82 * top
    digits = np.stack([rest % 3, rest // 3 % 3, rest // 9 % 3, rest // 27, top], axis=1)
    digits[rest > 80] = 3
    return (digits - 1).astype(np.int8)


_DIGITS = _digits_of_bytes()
_NEVER = _DIGITS[:, 0] == 2


@dataclass(frozen=True)
class Ternary5Format(TernaryFormat):
    """Ternary codes int8 (N, K), scales float32 (N,) or one for the tensor, shape ()."""

    def _words(self, codes: Codes, padded: Shape) -> Words:
        fields = pad_codes(codes, padded, 0).view(np.uint8) + np.uint8(1)
        quads = fields.view(np.dtype("<u4")).reshape(padded[0], -1, 5)
        # A byte is at most 2, so no product leaves its byte and no sum does.
        words = quads[:, :, 0].copy()
        for i in range(1, 5):
            words += quads[:, :, i] * np.uint32(_FACTORS[i])
        return words

    def _codes(self, words: Words) -> Codes:
        digits = _DIGITS[np.ascontiguousarray(words).view(np.uint8)]
        by_field = digits.reshape(*words.shape, 4, 5).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(by_field).reshape(len(words), -1)

    def _check_words(self, blocks: Words, shape: Shape) -> None:
        for tile, words in enumerate(blocks):
            bad = _NEVER[np.ascontiguousarray(words).view(np.uint8)]
            if bad.any():
                row = tile * 16 + int(np.argwhere(bad.reshape(len(words), 16, 4))[0][1])
                expected = "0..80, 82..162 or 164..244"
                found = int(np.ascontiguousarray(words).view(np.uint8)[bad][0])
                raise self._error("byte of five ternary codes", expected, found, row=row)


FORMAT = Ternary5Format(
    name="ternary5",
    family="ternary",
    weight_bits=1.6,
    group_size=0,
    column_unit=20,
    source="Ma et al. 2024, The Era of 1-bit LLMs",
    block_columns=20,
)
