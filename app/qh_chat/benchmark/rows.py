"""One row of results, the same for all kinds, and how it is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["Row"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One measured rate. What does not apply is None.

    Attributes:
        kind: "kernels" (the linear layers alone), "decode", "prefill" or "load".
        shape: name of the model that is imitated.
        format: of the linear layers.
        tokens_per_s: median; spread is (slow tenth, fast tenth).
        bytes_per_token: weights and, in decode, mean KV cache that are read; for several tokens at
            once, the weights of one batch over its tokens.
        gb_per_s: bytes_per_token * tokens_per_s, in 10**9 bytes.
        fraction_of_bandwidth: median of the quotients of gb_per_s and the read bandwidth measured
            before and after it, with as many threads.
        peer: format and program that took turns with ours; peer_* are its results.
        ratio: median of the quotients of our rate and the peer's in the same round.
        rounds: turns taken.
        tokens: multiplied together; for prefill the length of the prompt.
        context: tokens in the KV cache when decoding began.
        in_cache: what a decode step reads fits the largest cache, so the fraction may exceed 1.
        bandwidth_gb_per_s: median of the read bandwidth beside it.
        macs_per_token: multiply-adds of the linear layers, in decode of the head too.
        peak: the instruction sequence that limits prefill, with its multiply-adds per second.
        fraction_of_peak: median of the quotients of our multiply-adds and those measured beside.
        linear_fraction: of a token's time, the part that threads spend in products of linear layers
            and the head; the rest is attention, norms, sampling, hand-overs, waiting and Python.
        foreign_cpu, steal_cpu: mean number of CPUs that other programs used meanwhile, and that the
            host of a virtual machine took.
        state, start_to_first_token_s, rss_bytes, planned_bytes, rss_over_plan: of loads; see
            `starting.py`.
    """

    kind: str
    shape: str
    format: str
    isa: str
    threads: int
    tokens_per_s: float | None = None
    bytes_per_token: int | None = None
    gb_per_s: float | None = None
    fraction_of_bandwidth: float | None = None
    peer: str | None = None
    peer_tokens_per_s: float | None = None
    ratio: float | None = None
    spread: Range | None = None
    rounds: int | None = None
    tokens: int | None = None
    context: int | None = None
    in_cache: bool | None = None
    bandwidth_gb_per_s: float | None = None
    bandwidth_spread: Range | None = None
    fraction_spread: Range | None = None
    macs_per_token: int | None = None
    peak: str | None = None
    peak_macs_per_s: float | None = None
    fraction_of_peak: float | None = None
    linear_fraction: float | None = None
    peer_bytes_per_token: int | None = None
    peer_gb_per_s: float | None = None
    peer_fraction_of_bandwidth: float | None = None
    peer_spread: Range | None = None
    ratio_spread: Range | None = None
    foreign_cpu: float | None = None
    steal_cpu: float | None = None
    state: str | None = None
    start_to_first_token_s: float | None = None
    rss_bytes: int | None = None
    planned_bytes: int | None = None
    rss_over_plan: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with every key."""
        return dataclasses.asdict(self)

    def changed(self, **changes: Any) -> Row:
        """Return the row with other values."""
        return dataclasses.replace(self, **changes)

    def line(self) -> str:
        """Return the row as one line for people."""
        head = f"{self.kind:8} {self.shape:13} {self.format:12} {self.isa:11} {self.threads} thr "
        if self.kind == "load":
            return (
                f"{head}{self.state} start {self.start_to_first_token_s:.2f} s to the first token, "
                f"memory {(self.rss_bytes or 0) / 1e6:,.0f} of "
                f"{(self.planned_bytes or 0) / 1e6:,.0f} MB planned"
            )
        parts = [f"{self.tokens_per_s:9.1f} tok/s"]
        if self.spread is not None:
            parts.append(f"({self.spread[0]:.1f}-{self.spread[1]:.1f})")
        if self.kind == "prefill" or (self.tokens or 1) > 1:
            if self.fraction_of_peak is not None:
                parts.append(f"{self.fraction_of_peak:4.0%} of {self.peak}")
        else:
            parts.append(f"{(self.bytes_per_token or 0) / 1e6:7.1f} MB/token")
            parts.append(f"{self.gb_per_s:5.1f} GB/s")
            if self.fraction_of_bandwidth is not None:
                parts.append(f"{self.fraction_of_bandwidth:4.0%} of bandwidth")
        if self.in_cache:
            parts.append("(in cache)")
        if self.linear_fraction is not None:
            parts.append(f"{1 - self.linear_fraction:3.0%} outside linears")
        if self.context is not None:
            parts.append(f"at {self.context}")
        if self.peer is not None:
            parts.append(
                f"| {self.peer} {self.peer_tokens_per_s:.1f} tok/s, "
                f"{(self.peer_bytes_per_token or 0) / 1e6:.1f} MB/token: {self.ratio:.2f}x"
            )
        if self.foreign_cpu is not None:
            parts.append(f"others {self.foreign_cpu:.2f} CPU")
        return head + "  ".join(parts)
