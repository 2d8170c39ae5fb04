"""codebook: groups of weights are sums of vectors from codebooks (AQLM), with one scale per row.

    w[n, g * G + j] = row[n] * sum over m of entry[m, code[n, g, m], j]

M codebooks of 2**B vectors of G integers (entry), B bits a code, one float32 factor per row. A
checkpoint's float16 codebooks become integers in units of one step per matrix, which goes into the
row's factor (`from_float`). All values little-endian. Kp = K padded to 32.

B = 8 (tables). entry is int16; Np = N padded to 64; L = 32 / G * M lookups in a span of 32 columns:

    i32 largest, 60 zero bytes     the largest |sum of entries| of a weight, and of an entry used
    i16 [M][G / 2][256][2]         entry[m][c][2p + i] at [m][p][c][i]
    f32 row[Np]
    for each span of 32 columns, for each pass of 256 rows (64, 128 or 192 at the end),
        for each lookup l = group in the span * M + m, for each 64 rows of the pass: 64 bytes,
            byte 16a + 4b + c is the code of row 16b + 4a + c

so that a table stays in registers for a pass, and four blocks interleave to rows in order. Products
with int8 inputs round the products of vectors to 13 bits (14 where L is 4), or, from BLOCK_TOKENS
tokens on, the weights to 8: kernels/src/scalar/codebook.h, `TableRounding`. Vectors obey
127 * sum of |entry| < 2**shift * (32767 / L + 1/2), so that 16 bits hold every sum.

B > 8. entry is int8; Np = N padded to 16:

    i8 [M][2**B][G]                entry
    f32 row[Np]
    tiles of 16 rows: u16 [Kp / G][M][16] codes

The row chunks of a matrix do not follow each other: codebooks come first, and tables have columns
outermost.

Source: Egiazarian et al. 2024, Extreme compression of large language models via additive
quantization (AQLM), section 3. `quantize` is a plain residual k-means without calibration, for
tests: models of use come from checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.formats.base import Codes, Scales, Shape, WeightFormat
from qh_runtime.formats.families.kmeans import residual_codebooks

__all__ = ["BLOCK_TOKENS", "CodebookFormat", "TableRounding", "aqlm"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

SPAN = 32
CHUNK_SPANS = 8
BLOCK_SPANS = 32
SPAN_WEIGHT = 8191
BLOCK_TOKENS = 16
_LOOKUP_ROWS = 64
_PASS_ROWS = 256
_TILE_ROWS = 16
_HEADER_BYTES = 64
# Place in a block of 64 codes -> row.
_PLACES = np.arange(64).reshape(4, 4, 4).transpose(1, 0, 2).reshape(-1)
# Rows below this become zeros: their factors would not be normal float32.
_SMALLEST = np.float32(1e-30)


@dataclass(frozen=True)
class TableRounding:
    """Bounds of the error that products with int8 activations add to exact ones.

    Attributes:
        factors: of rows, (N,).
        lookups, shift, n_codebooks: of the format.
        largest: largest weight or entry, as an integer.
    """

    factors: F32
    lookups: int
    shift: int
    n_codebooks: int
    largest: int

    def bound(self, codes: NDArray[np.int8], x_scales: NDArray[np.floating]) -> NDArray[np.float64]:
        """(tokens, N) for activations: codes (tokens, K), scales (tokens, at least K / 32)."""
        spans = -(-codes.shape[1] // SPAN)
        scales = np.abs(x_scales[:, :spans]).astype(np.float64)
        if len(codes) >= BLOCK_TOKENS:
            # Every entry is off by half a step, and sums are cut off by as much.
            step = 32768 / max(127 * 32768 // max(self.largest, 127), 1)
            padded = np.zeros((len(codes), spans * SPAN))
            padded[:, : codes.shape[1]] = np.abs(codes.astype(np.int16))
            sums = padded.reshape(len(codes), spans, SPAN).sum(axis=2)
            by_token = (sums * scales).sum(axis=1) * self.n_codebooks * step
        else:
            # Half a unit per lookup; half a unit of the span's weight, times at most 32767.
            chunks = -(-spans // CHUNK_SPANS)
            padded = np.zeros((len(codes), chunks * CHUNK_SPANS))
            padded[:, :spans] = scales
            largest = padded.reshape(len(codes), chunks, CHUNK_SPANS).max(axis=2)
            weights = 32767 / SPAN_WEIGHT / 2 * CHUNK_SPANS * largest.sum(axis=1)
            by_token = (scales.sum(axis=1) * self.lookups / 2 + weights) * (1 << self.shift)
        return np.asarray(by_token[:, None] * np.abs(self.factors.astype(np.float64)))


@dataclass(frozen=True)
class CodebookFormat(WeightFormat):
    """Codes uint8 or uint16 (N, ceil(K / G), M), in a span without padding.

    Scales float32 (N + M * 2**B * G,): factors of rows, then the entries, which are whole numbers.

    Attributes:
        n_codebooks: M.
        code_bits: B, 8 to 16.
        vector: G, columns of one code: 8, 16 or 32.
        shift: bits that a table drops, where B is 8.
    """

    n_codebooks: int
    code_bits: int
    vector: int
    shift: int

    # Sizes.

    @property
    def has_tables(self) -> bool:
        """Whether products are looked up; else vectors are."""
        return self.code_bits == 8

    @property
    def lookups(self) -> int:
        """Codes of a row in 32 columns."""
        return SPAN // self.vector * self.n_codebooks

    @property
    def book_shape(self) -> tuple[int, int, int]:
        """(M, 2**B, G)."""
        return (self.n_codebooks, 1 << self.code_bits, self.vector)

    @property
    def largest_entry(self) -> int:
        """Largest magnitude of an entry."""
        return 32767 if self.has_tables else 127

    @property
    def largest_norm(self) -> int:
        """Largest sum of magnitudes of a vector."""
        if not self.has_tables:
            return 127 * self.vector
        entry = 32767 // self.lookups
        return ((entry << self.shift) + (1 << self.shift >> 1) - 1) // 127

    def padded_rows(self, rows: int) -> int:
        """N padded."""
        unit = _LOOKUP_ROWS if self.has_tables else _TILE_ROWS
        return -(-rows // unit) * unit

    @property
    def _book_bytes(self) -> int:
        return int(np.prod(self.book_shape)) * (2 if self.has_tables else 1)

    @property
    def _rows_at(self) -> int:
        return self._book_bytes + (_HEADER_BYTES if self.has_tables else 0)

    def nbytes(self, shape: Shape) -> int:
        self.check_shape(shape)
        rows, spans = self.padded_rows(shape[0]), -(-shape[1] // SPAN)
        width = 1 if self.has_tables else 2
        return self._rows_at + 4 * rows + rows * spans * self.lookups * width

    # Codes and what they mean.

    def split(self, scales: Scales, rows: int) -> tuple[F32, I32]:
        """(factors (N,), entries (M, 2**B, G)) of scales."""
        return scales[:rows], scales[rows:].astype(np.int32).reshape(self.book_shape)

    def join(self, factors: F32, entries: I32) -> Scales:
        """Scales of factors (N,) and entries (M, 2**B, G)."""
        return np.concatenate([factors, entries.reshape(-1)]).astype(np.float32)

    def from_float(
        self, codes: Codes, codebooks: NDArray[np.floating], scales: NDArray[np.floating]
    ) -> tuple[Codes, Scales]:
        """Codes and scales of an AQLM layer.

        An entry is off by up to half a step; the step is the larger of max |codebook| /
        largest_entry and max sum of |vector| / (largest_norm - G / 2).

        Args:
            codes: whole numbers in 0..2**B - 1, (N, K / G, M).
            codebooks: (M, 2**B, G), finite.
            scales: (N,), finite.

        Raises:
            FormatError: another shape, or values that are not finite.
        """
        books = np.asarray(codebooks, np.float64)
        if books.shape != self.book_shape or not np.isfinite(books).all():
            raise self._error("codebooks", f"finite {self.book_shape}", books.shape)
        rows = np.asarray(scales, np.float64)
        if rows.shape != codes.shape[:1] or not np.isfinite(rows).all():
            raise self._error("scales", f"finite {codes.shape[:1]}", rows.shape)
        norm = float(np.abs(books).sum(axis=2).max())
        step = max(
            float(np.abs(books).max()) / self.largest_entry,
            norm / (self.largest_norm - self.vector / 2),
        )
        entries = np.rint(books / step) if step > 0 else np.zeros_like(books)
        entries = np.clip(entries, -self.largest_entry, self.largest_entry)
        with np.errstate(over="ignore"):
            factors = (rows * step).astype(np.float32)
        return codes.astype(self._code_type), self.join(factors, entries.astype(np.int32))

    @property
    def _code_type(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.has_tables else np.uint16

    def integers(self, codes: Codes, scales: Scales, columns: int | None = None) -> I32:
        """(N, K): row factor times these are the weights. columns: K; None for all of the codes."""
        _, entries = self.split(scales, len(codes))
        return self._sum(codes, entries)[:, :columns]

    def _sum(self, codes: Codes, entries: I32) -> I32:
        total = entries[0][codes[:, :, 0]]
        for m in range(1, self.n_codebooks):
            total = total + entries[m][codes[:, :, m]]
        return np.asarray(total.reshape(len(codes), -1), np.int32)

    def dequantize(self, codes: Codes, scales: Scales) -> F32:
        factors, _ = self.split(scales, len(codes))
        values = self.integers(codes, scales).astype(np.float32)
        return np.asarray(factors[:, None] * values, np.float32)

    def unpack(self, buffer: NDArray[np.uint8], shape: Shape) -> F32:
        weights = self.dequantize(*self.unpack_codes(buffer, shape))
        return np.ascontiguousarray(weights[:, : shape[1]])

    def coded(self, codes: Codes, scales: Scales) -> tuple[NDArray[np.int32], F32]:  # type: ignore[override]
        """The integers before any rounding of products, and the factors (N, 1)."""
        return self.integers(codes, scales), self.split(scales, len(codes))[0][:, None]

    def rounding(self, codes: Codes, scales: Scales) -> TableRounding | None:
        """What products with int8 activations round, None where they are exact."""
        if not self.has_tables:
            return None
        factors, entries = self.split(scales, len(codes))
        return TableRounding(
            factors, self.lookups, self.shift, self.n_codebooks, self._largest(codes, entries)
        )

    # Quantizer.

    def quantize(self, weights: F32) -> tuple[Codes, Scales]:
        """Residual k-means: each codebook holds zero, and centres of what is left over."""
        self.check_weights(weights)
        largest = np.abs(weights).max(axis=1)
        if not np.isfinite(largest).all():
            row = int(np.argmin(np.isfinite(largest)))
            raise self._error("weights", "finite", f"{largest[row]} in row {row}", row=row)
        sizes = np.where(largest < _SMALLEST, np.float32(0), largest)
        safe = np.where(sizes > 0, sizes, np.float32(1))
        rows, cols = weights.shape
        groups = -(-cols // self.vector)
        vectors = np.zeros((rows, groups * self.vector), np.float32)
        vectors[:, :cols] = np.where(sizes[:, None] > 0, weights / safe[:, None], np.float32(0))
        codes, books = residual_codebooks(
            vectors.reshape(-1, self.vector), self.n_codebooks, 1 << self.code_bits
        )
        return self.from_float(codes.reshape(rows, groups, -1), books, sizes)

    def error_bound(self, weights: F32) -> F32:
        # No codebook makes a vector's error larger than the vector; rounding entries to integers
        # adds half a step each, of at most sqrt(G) / 127 of the row's largest weight.
        rows, cols = weights.shape
        groups = -(-cols // self.vector)
        padded = np.zeros((rows, groups * self.vector))
        padded[:, :cols] = weights
        norms = np.sqrt((padded.reshape(rows, groups, self.vector) ** 2).sum(axis=2))
        largest = np.abs(weights.astype(np.float64)).max(axis=1, keepdims=True)
        steps = largest * (self.n_codebooks * self.vector**0.5 / 250)
        bound = (np.repeat(norms, self.vector, axis=1)[:, :cols] + steps) * (1 + 2**-10)
        return np.asarray(bound + 2 * float(_SMALLEST), np.float32)

    # Bytes.

    def _pack(self, codes: Codes, scales: Scales, shape: Shape, out: NDArray[np.uint8]) -> None:
        factors, entries = self.split(scales, shape[0])
        rows, spans = self.padded_rows(shape[0]), -(-shape[1] // SPAN)
        books, row_bytes, body = self._sections(out, shape)
        by_row = np.zeros(rows, np.dtype("<f4"))
        by_row[: shape[0]] = factors
        row_bytes[...] = by_row.view(np.uint8)
        padded = np.zeros((rows, spans * SPAN // self.vector, self.n_codebooks), codes.dtype)
        padded[: shape[0], : codes.shape[1]] = codes
        if not self.has_tables:
            books[...] = entries.astype(np.int8).reshape(-1).view(np.uint8)
            tiles = padded.reshape(rows // _TILE_ROWS, _TILE_ROWS, -1).transpose(0, 2, 1)
            body[...] = np.ascontiguousarray(tiles, np.dtype("<u2")).reshape(-1).view(np.uint8)
            return
        out[:_HEADER_BYTES] = 0
        largest = self._largest(codes, entries)
        out[:4] = np.array([largest], np.dtype("<i4")).view(np.uint8)
        m, c, g = self.book_shape
        pairs = entries.reshape(m, c, g // 2, 2).transpose(0, 2, 1, 3)
        books[...] = np.ascontiguousarray(pairs, np.dtype("<i2")).reshape(-1).view(np.uint8)
        by_span = body.reshape(spans, -1)
        for begin, end in self._passes(rows):
            blocks = padded[begin:end].reshape(-1, _LOOKUP_ROWS, spans, self.lookups)
            # (64-row blocks, place, span, lookup) -> (span, lookup, block, place)
            ordered = blocks[:, _PLACES].transpose(2, 3, 0, 1)
            by_span[:, begin * self.lookups : end * self.lookups] = ordered.reshape(spans, -1)

    def _largest(self, codes: Codes, entries: I32) -> int:
        sums = int(np.abs(self._sum(codes, entries)).max())
        return max(sums, self._largest_used(codes, entries))

    def _largest_used(self, codes: Codes, entries: I32) -> int:
        used = (np.abs(entries[m][np.unique(codes[:, :, m])]) for m in range(self.n_codebooks))
        return max(int(x.max()) for x in used)

    def _passes(self, rows: int) -> list[tuple[int, int]]:
        return [(x, min(x + _PASS_ROWS, rows)) for x in range(0, rows, _PASS_ROWS)]

    def _sections(
        self, buffer: NDArray[np.uint8], shape: Shape
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Views: codebooks, factors of rows, codes."""
        rows_at = self._rows_at
        codes_at = rows_at + 4 * self.padded_rows(shape[0])
        first = rows_at - self._book_bytes
        return buffer[first:rows_at], buffer[rows_at:codes_at], buffer[codes_at:]

    def _unpack_codes(self, buffer: NDArray[np.uint8], shape: Shape) -> tuple[Codes, Scales]:
        rows, spans = self.padded_rows(shape[0]), -(-shape[1] // SPAN)
        books, row_bytes, body = self._sections(buffer, shape)
        factors = row_bytes.copy().view(np.dtype("<f4"))[: shape[0]]
        m, c, g = self.book_shape
        if self.has_tables:
            pairs = books.copy().view(np.dtype("<i2")).reshape(m, g // 2, c, 2)
            entries = pairs.transpose(0, 2, 1, 3).reshape(m, c, g).astype(np.int32)
            padded = np.empty((rows, spans, self.lookups), np.uint8)
            by_span = body.reshape(spans, -1)
            for begin, end in self._passes(rows):
                part = by_span[:, begin * self.lookups : end * self.lookups]
                blocks = part.reshape(spans, self.lookups, -1, _LOOKUP_ROWS).transpose(2, 3, 0, 1)
                target = padded[begin:end].reshape(-1, _LOOKUP_ROWS, spans, self.lookups)
                target[:, _PLACES] = blocks
        else:
            entries = books.view(np.int8).reshape(m, c, g).astype(np.int32)
            tiles = body.copy().view(np.dtype("<u2")).reshape(rows // _TILE_ROWS, -1, _TILE_ROWS)
            padded = tiles.transpose(0, 2, 1).astype(np.uint16)
        codes = padded.reshape(rows, -1, m)[: shape[0], : -(-shape[1] // g)]
        return np.ascontiguousarray(codes), self.join(factors.astype(np.float32), entries)

    def _check_codes(self, codes: Codes, scales: Scales, shape: Shape) -> tuple[Codes, Scales]:
        expected = (shape[0], -(-shape[1] // self.vector), self.n_codebooks)
        if codes.shape != expected or codes.dtype != self._code_type:
            raise self._error(
                "codes", f"{self._code_type.__name__} {expected}", f"{codes.dtype} {codes.shape}"
            )
        if int(codes.max()) >> self.code_bits:
            raise self._error("code", f"below {1 << self.code_bits}", int(codes.max()))
        length = (shape[0] + int(np.prod(self.book_shape)),)
        if scales.shape != length or scales.dtype != np.float32:
            raise self._error("scales", f"float32 {length}", f"{scales.dtype} {scales.shape}")
        if not np.isfinite(scales).all():
            raise self._error("scales", "finite", "a scale that is not")
        held = scales[shape[0] :]
        if (held != np.rint(held)).any() or np.abs(held).max() > self.largest_entry:
            raise self._error(
                "codebooks", f"whole numbers up to {self.largest_entry}", "an entry that is none"
            )
        self._check_norms(self.split(scales, shape[0])[1])
        return codes, scales

    def _check_norms(self, entries: I32) -> None:
        worst = int(np.abs(entries).sum(axis=2).max())
        if worst > self.largest_norm:
            raise self._error("vector", f"entries adding up to {self.largest_norm}", worst)

    def _check_bytes(self, buffer: NDArray[np.uint8], shape: Shape) -> None:
        _, row_bytes, body = self._sections(buffer, shape)
        factors = row_bytes.copy().view(np.dtype("<f4"))
        if not np.isfinite(factors).all():
            row = int(np.argmin(np.isfinite(factors)))
            raise self._error("scale", "finite", f"not finite in row {row}", row=row)
        if not self.has_tables and self.code_bits < 16:
            largest = int(body.copy().view(np.dtype("<u2")).max())
            if largest >> self.code_bits:
                raise self._error("code", f"below {1 << self.code_bits}", largest)
        codes, scales = self._unpack_codes(buffer, shape)
        entries = self.split(scales, shape[0])[1]
        if int(np.abs(entries).max()) > self.largest_entry:
            raise self._error(
                "codebooks", f"entries up to {self.largest_entry}", int(np.abs(entries).max())
            )
        self._check_norms(entries)
        if self.has_tables:
            found = int(buffer[:4].copy().view(np.dtype("<i4"))[0])
            allowed = self.n_codebooks * self.largest_entry
            if not self._largest_used(codes, entries) <= found <= allowed:
                raise self._error("largest weight", f"its codes' own, up to {allowed}", found)

    def fill_random(
        self, out: NDArray[np.uint8], shape: Shape, dice: np.random.Generator, size: float
    ) -> None:
        """Write a valid matrix of random codes, its weights about `size`, to out (nbytes(shape),).

        For measurements: quantizing that many weights would take hours.
        """
        limit = min(self.largest_entry, self.largest_norm // self.vector)
        drawn = dice.standard_normal(self.book_shape) * (limit / 2)
        entries = np.clip(np.rint(drawn), -limit, limit).astype(np.int32)
        one = np.zeros((1, 1, self.n_codebooks), self._code_type)
        small = self.pack_codes(one, self.join(np.zeros(1, np.float32), entries), (1, 1))
        out[: self._rows_at] = small[: self._rows_at]
        _, row_bytes, body = self._sections(out, shape)
        factor = size / (limit / 2 * self.n_codebooks**0.5)
        rows = np.zeros(self.padded_rows(shape[0]), np.dtype("<f4"))
        rows[: shape[0]] = factor
        row_bytes[...] = rows.view(np.uint8)
        body[...] = np.frombuffer(dice.bytes(len(body)), np.uint8)
        if self.has_tables:
            largest = self.n_codebooks * int(np.abs(entries).max())
            out[:4] = np.array([largest], np.dtype("<i4")).view(np.uint8)
        elif self.code_bits < 16:
            codes = body.copy().view(np.dtype("<u2")) & np.uint16((1 << self.code_bits) - 1)
            body[...] = codes.view(np.uint8)

    def take_rows(
        self, buffer: NDArray[np.uint8], shape: Shape, rows: NDArray[np.intp]
    ) -> NDArray[np.uint8]:
        """The packed bytes of some rows (all inside) as a matrix of its own.

        Its 8-bit weights are those of the whole matrix: the largest weight stays.

        Raises:
            FormatError: the bytes are none that the format writes.
        """
        codes, scales = self.unpack_codes(buffer, shape)
        factors, entries = self.split(scales, shape[0])
        taken = self.pack_codes(
            codes[rows], self.join(factors[rows], entries), (len(rows), shape[1])
        )
        if self.has_tables:
            taken[:4] = buffer[:4]
        return taken


def aqlm(n_codebooks: int, code_bits: int, vector: int, shift: int = 0) -> CodebookFormat:
    """The AQLM scheme of this many codebooks, bits per code and weights per code.

    Args:
        shift: table_shift of the line in kernels/src/formats.h; schemes of 8 bits have one.
    """
    return CodebookFormat(
        name=f"aqlm_{n_codebooks}x{code_bits}_g{vector}",
        family="codebook",
        weight_bits=n_codebooks * code_bits // vector,
        group_size=0,
        column_unit=SPAN,
        source="Egiazarian et al. 2024, AQLM, section 3",
        row_chunks=False,
        n_codebooks=n_codebooks,
        code_bits=code_bits,
        vector=vector,
        shift=shift,
    )
