"""Measurements of this machine: read bandwidth, and the rates of a matrix product and of attention.

All run their own threads with the GIL released, on memory larger than any cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from qh_kernels.kv_cache import KvType

__all__ = [
    "AttentionRate",
    "LinearRate",
    "bench_attention",
    "bench_linear",
    "measure_read_bandwidth",
]

_DEFAULT_WORKING_SET_BYTES = 512 << 20


@dataclass(frozen=True)
class LinearRate:
    """Speed of one matrix product.

    Attributes:
        calls: whole products done by all threads together.
        elapsed_s: from the common start to the end of the last thread.
        weight_bytes: packed size of the matrix.
        macs: multiply-adds in one product, rows * cols * n_tokens.
    """

    calls: int
    elapsed_s: float
    weight_bytes: int
    macs: int

    @property
    def weight_bytes_per_s(self) -> float:
        """Rate at which packed weights were read; compare with `measure_read_bandwidth`."""
        return self.calls * self.weight_bytes / self.elapsed_s

    @property
    def macs_per_s(self) -> float:
        """Multiply-adds per second."""
        return self.calls * self.macs / self.elapsed_s


def measure_read_bandwidth(
    n_bytes: int = _DEFAULT_WORKING_SET_BYTES, threads: int = 1, seconds: float = 0.5
) -> float:
    """Return bytes per second read by all threads together, front to back.

    Args:
        n_bytes: memory read again and again, split between the threads; use several times the
            last-level cache.
        threads: number of threads.
        seconds: duration of the measurement.

    Raises:
        KernelError: an argument is out of range, or there is not enough memory.
    """
    from qh_kernels import _native

    return _native.measure_read_bandwidth(n_bytes, threads, seconds)


def bench_linear(
    format: str,
    rows: int,
    cols: int,
    n_tokens: int = 1,
    *,
    isa: str,
    threads: int = 1,
    seconds: float = 0.5,
    working_set_bytes: int = _DEFAULT_WORKING_SET_BYTES,
) -> LinearRate:
    """Measure y = W x for n_tokens rows of x, with pseudo-random weights.

    Copies of the matrix that fill working_set_bytes are used in turn, so decode rates (n_tokens 1)
    are those of weights that come from memory. Threads split the rows as the decoder does.

    Raises:
        KernelError: unknown format or instruction set, a value out of range, or not enough memory.
    """
    from qh_kernels import _native

    calls, elapsed_s = _native.bench_linear(
        isa, format, rows, cols, n_tokens, threads, seconds, working_set_bytes
    )
    return LinearRate(
        calls=calls,
        elapsed_s=elapsed_s,
        weight_bytes=_native.format_nbytes(format, rows, cols),
        macs=rows * cols * n_tokens,
    )


@dataclass(frozen=True)
class AttentionRate:
    """Speed of the attention of one token.

    Attributes:
        calls: layers attended to.
        elapsed_s: duration of them.
        kv_bytes: keys, values and scales that one layer has at so many positions.
    """

    calls: int
    elapsed_s: float
    kv_bytes: int

    @property
    def kv_bytes_per_s(self) -> float:
        """Rate at which the KV cache was read; compare with `measure_read_bandwidth`."""
        return self.calls * self.kv_bytes / self.elapsed_s


def bench_attention(
    kv_type: KvType,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    positions: int,
    *,
    isa: str,
    threads: int = 1,
    seconds: float = 0.5,
    working_set_bytes: int = _DEFAULT_WORKING_SET_BYTES,
) -> AttentionRate:
    """Measure the attention of one token over `positions` positions, split as the decoder does.

    Layers of pseudo-random keys and values that fill working_set_bytes are used in turn, so they
    come from memory.

    Raises:
        KernelError: unknown KV type or instruction set, a value out of range, or not enough memory.
    """
    from qh_kernels import _native

    calls, elapsed_s, kv_bytes = _native.bench_attention(
        isa,
        kv_type,
        n_heads,
        n_kv_heads,
        head_dim,
        positions,
        threads,
        seconds,
        working_set_bytes,
    )
    return AttentionRate(calls=calls, elapsed_s=elapsed_s, kv_bytes=kv_bytes)
