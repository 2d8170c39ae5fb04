"""Measurements of this machine: read bandwidth, multiply-adds per second, and how near to them
single matrix products and the linear layers of a whole decoder come, and of attention.

All run their own threads with the GIL released.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qh_kernels.decoder import Decoder
from qh_kernels.decoder_model import check_range, mismatch
from qh_kernels.kv_cache import KvType

__all__ = [
    "AttentionRate",
    "LinearRate",
    "LinearTimer",
    "ReadBench",
    "StackRate",
    "bench_attention",
    "bench_linear",
    "bench_stack",
    "fill_cache",
    "mac_peak_names",
    "measure_mac_peak",
    "measure_read_bandwidth",
    "prefetch_distance",
    "set_prefetch_distance",
    "timed_linears",
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


@dataclass(frozen=True)
class StackRate:
    """Speed of the linear layers of a decoder, one after the other.

    Attributes:
        layers: decoder layers whose linear layers were multiplied, from the first on.
        elapsed_s: the time of that.
    """

    layers: int
    elapsed_s: float


class ReadBench:
    """Memory to read, kept between measurements.

    Args:
        n_bytes: of memory, in large pages where the system has them.

    Raises:
        KernelError: not a positive number, or there is not enough memory.
    """

    def __init__(self, n_bytes: int = _DEFAULT_WORKING_SET_BYTES) -> None:
        from qh_kernels import _native

        self.n_bytes = n_bytes
        self._native = _native.ReadBench(n_bytes)

    def measure(self, threads: int, seconds: float, n_bytes: int | None = None) -> float:
        """Return bytes per second read by all threads together, front to back.

        Args:
            threads: each reads a part of its own.
            seconds: duration of the measurement.
            n_bytes: how much of the memory is read again and again; None is all of it.

        Raises:
            KernelError: an argument is out of range.
        """
        size = self.n_bytes if n_bytes is None else n_bytes
        return self._native.measure(size, threads, seconds)


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
    return ReadBench(n_bytes).measure(threads, seconds)


def mac_peak_names() -> tuple[str, ...]:
    """Return the instruction sequences of multiply-adds that run here: "vpdpbusd_zmm"."""
    from qh_kernels import _native

    return tuple(_native.mac_peak_names())


def measure_mac_peak(name: str, threads: int = 1, seconds: float = 0.2) -> float:
    """Return multiply-adds per second of one instruction sequence, all threads together.

    The operands are registers: no program is faster with these instructions.

    Raises:
        KernelError: not one of `mac_peak_names`, or an argument is out of range.
    """
    from qh_kernels import _native

    return _native.measure_mac_peak(name, threads, seconds)


def bench_stack(decoder: Decoder, n_tokens: int = 1, seconds: float = 0.5) -> StackRate:
    """Measure the linear layers of all decoder layers in order, again and again.

    They run as in a forward pass, hand-overs to the threads included; what is left out is what a
    token needs besides: attention, norms, quantized inputs and the head. The decoder has no last
    token afterwards, whose logits could be asked for.

    Args:
        n_tokens: inputs that are multiplied together, at most the decoder's `batch_tokens`.
        seconds: at least; it ends with a whole decoder layer.

    Raises:
        KernelError: an argument is out of range.
    """
    check_range("n_tokens", n_tokens, 1, decoder.batch_tokens)
    _check_seconds(seconds)
    with decoder._use() as native:
        position = native.position
        layers, elapsed_s = native.linear_rate(n_tokens, seconds)
        native.truncate(position)
    return StackRate(layers=layers, elapsed_s=elapsed_s)


def fill_cache(decoder: Decoder, position: int) -> None:
    """Puts made-up keys and values before this position, as if so many tokens had been computed.

    Raises:
        KernelError: position is not in 0..context_length.
    """
    check_range("position", position, 0, decoder.context_length)
    with decoder._use() as native:
        native.fill_cache(position)


class LinearTimer:
    """Seconds inside the products of linear layers since it was made; mean over the threads."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def seconds(self) -> float:
        """Time so far; waiting for work or for another thread does not count."""
        with self._decoder._use() as native:
            return native.linear_seconds()


@contextmanager
def timed_linears(decoder: Decoder) -> Iterator[LinearTimer]:
    """While it is open, the decoder adds up the time of its linear layers, the head among them."""
    with decoder._use() as native:
        native.time_linears(True)
    try:
        yield LinearTimer(decoder)
    finally:
        with decoder._use() as native:
            native.time_linears(False)


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds <= 600:
        raise mismatch("seconds", "a positive number up to 600", seconds)


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


def prefetch_distance() -> int:
    """Return how many bytes ahead of their use the packed kernels ask for weights; 0: they do not.

    Chosen for the processor when the library is loaded (src/core/prefetch.cpp).
    """
    from qh_kernels import _native

    return _native.prefetch_distance()


def set_prefetch_distance(n_bytes: int) -> None:
    """Change it for this process, to measure what another distance gives; never while one runs.

    Raises:
        KernelError: not 0 to 1048576.
    """
    from qh_kernels import _native

    _native.set_prefetch_distance(n_bytes)
