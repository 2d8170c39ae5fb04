"""Takes turns: a limit, then ours, the limit again, then the peer, and so on.

Other programs come and go and memory is shared with neighbours that nobody sees, so a rate means
little without the limit a moment before and after it, and a ratio only within one round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qh_chat.benchmark.cpu_load import CpuWatch
from qh_chat.benchmark.limits import Limits, peak_name
from qh_chat.benchmark.rows import Row
from qh_chat.benchmark.samples import Spread, spread
from qh_chat.benchmark.shapes import BenchModel
from qh_kernels.bench import bench_stack, fill_cache, timed_linears
from qh_kernels.decoder import Decoder
from qh_kernels.sampler import Sampler
from qh_runtime.architectures import decoder_shape
from qh_runtime.formats import base as formats

__all__ = ["Effort", "PeerRuns", "Turns", "measure_model", "take_turns"]

# Tokens of one timed piece of decoding, at least and at most.
_LEAST_TOKENS = 4
_MOST_TOKENS = 256


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: turns of a row.
        seconds: of our part of a turn, at least, but for prefill, which takes what it takes.
        prompt_tokens: of prefill.
        contexts: tokens in the KV cache at which decoding is measured.
        kernel_tokens: numbers of tokens that are multiplied together in rows of kernels.
        row_seconds: after so long a row takes no further turn.
    """

    rounds: int
    seconds: float
    prompt_tokens: int
    contexts: tuple[int, ...]
    kernel_tokens: tuple[int, ...] = (1,)
    row_seconds: float = 60.0


@dataclass(frozen=True)
class PeerRuns:
    """What a peer can do in turn with us; see `peer.py`.

    Attributes:
        name: as shown: "llama.cpp TQ2_0".
        pid: of its process.
        bytes_per_token: weights that a decode step of it reads.
        decode: (context, seconds) to tokens per second.
        prefill: (tokens) to tokens per second.
    """

    name: str
    pid: int
    bytes_per_token: int
    decode: Callable[[int, float], float]
    prefill: Callable[[int], float]


@dataclass(frozen=True)
class Turns:
    """What taking turns found: for each runner, the rate of each round and the limit beside it."""

    rates: tuple[list[float], ...]
    limits: tuple[list[float], ...]

    def ratios(self) -> list[float]:
        """Rates of the first runner over those of the second in the same round."""
        return [a / b for a, b in zip(self.rates[0], self.rates[1], strict=True)]

    def fractions(self, runner: int, amount: float) -> list[float]:
        """amount * rate over the limit, round by round."""
        rates, limits = self.rates[runner], self.limits[runner]
        return [amount * rate / limit for rate, limit in zip(rates, limits, strict=True)]


def take_turns(
    limit: Callable[[], float],
    runners: Sequence[Callable[[], float]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Measure runners in turn, with the limit before and after each.

    Args:
        limit: the rate nothing can exceed, now.
        runners: each measures once and returns its rate.
        rounds: turns of each; at least one is taken.
        seconds: after so long no further round begins.
    """
    rates: tuple[list[float], ...] = tuple([] for _ in runners)
    limits: tuple[list[float], ...] = tuple([] for _ in runners)
    end = clock() + seconds
    before = limit()
    for done in range(max(1, rounds)):
        if done and clock() >= end:
            break
        for runner, kept, beside in zip(runners, rates, limits, strict=True):
            kept.append(runner())
            after = limit()
            beside.append((before + after) / 2)
            before = after
    return Turns(rates, limits)


def measure_model(
    model: BenchModel,
    kinds: Sequence[str],
    isa: str,
    threads: int,
    limits: Limits,
    cache_bytes: int,
    effort: Effort,
    peers: Sequence[PeerRuns] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Yield the rows of a model on one instruction set with so many threads.

    Args:
        kinds: of "kernels", "decode" and "prefill".
        cache_bytes: of the largest cache.
        peers: one row each in "decode" and "prefill"; none of them is one row without a peer.
        say: told what is measured next.
    """
    most = model.spec.max_position_embeddings
    contexts = [min(x, most - 2) for x in effort.contexts] if "decode" in kinds else []
    prompt_tokens = min(effort.prompt_tokens, most - 1)
    # Room for the tokens of one piece behind the longest context.
    context_length = min(most, max([prompt_tokens, *(x + _MOST_TOKENS + 2 for x in contexts)]))
    with Decoder(
        decoder_shape(model.spec),
        model.weights,
        context_length=context_length,
        threads=threads,
        isa=isa,
    ) as decoder:
        bench = _ModelBench(model, decoder, limits, cache_bytes, effort)
        if "kernels" in kinds:
            for n_tokens in effort.kernel_tokens:
                say(f"kernels, {n_tokens} at once" if n_tokens > 1 else "kernels")
                yield bench.kernels(n_tokens)
        for context in contexts:
            for peer in _or_none(peers):
                say(f"decode at {context}" + ("" if peer is None else f", and {peer.name}"))
                yield bench.decode(context, peer)
        if "prefill" in kinds:
            for peer in _or_none(peers):
                say("prefill" + ("" if peer is None else f", and {peer.name}"))
                yield bench.prefill(prompt_tokens, peer)


def _or_none(peers: Sequence[PeerRuns]) -> Sequence[PeerRuns | None]:
    return peers or (None,)


class _ModelBench:
    def __init__(
        self,
        model: BenchModel,
        decoder: Decoder,
        limits: Limits,
        cache_bytes: int,
        effort: Effort,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._limits = limits
        self._cache_bytes = cache_bytes
        self._effort = effort
        self._sampler = Sampler(model.spec.vocab_size, temperature=0.0)
        dice = np.random.default_rng(20261123)
        self._prompt = dice.integers(0, model.spec.vocab_size, decoder.context_length).astype(
            np.int32
        )
        # Of one token: multiply-adds and packed bytes of the linear layers.
        linears = [x for layer in model.spec.layers for x in layer.linears]
        self._macs = sum(x.out_features * x.in_features for x in linears)
        held = formats.get(model.format)
        self._bytes = sum(held.nbytes((x.out_features, x.in_features)) for x in linears)
        self._peak = peak_name(decoder.isa, held.family)

    def kernels(self, n_tokens: int) -> Row:
        """The linear layers of all decoder layers, nothing else."""
        decoder, layers = self._decoder, self._model.spec.num_hidden_layers

        def rate() -> float:
            found = bench_stack(decoder, n_tokens, self._effort.seconds)
            return found.layers / layers * n_tokens / found.elapsed_s

        if n_tokens > 1:
            return self._computed("kernels", rate, None, self._bytes, n_tokens, n_tokens)
        return self._read("kernels", rate, None, self._bytes, tokens=1)

    def decode(self, context: int, peer: PeerRuns | None) -> Row:
        """Whole tokens, from the pending one to the next, behind a context."""
        decoder = self._decoder
        fill_cache(decoder, context)

        def rate() -> float:
            return 1 / statistics.median(self._decode_seconds(context))

        row_bytes = decoder.allocated_bytes["kv_cache"] / decoder.context_length
        # The spread of positions in a piece is small beside the context.
        moved = self._model.token_bytes + int(row_bytes * (context + _LEAST_TOKENS))
        row = self._read("decode", rate, peer, moved, context=context)
        return row.changed(linear_fraction=self._linear_fraction(context))

    def prefill(self, n_tokens: int, peer: PeerRuns | None) -> Row:
        """A prompt of random tokens, from an empty cache."""
        decoder = self._decoder
        prompt = self._prompt[:n_tokens]
        batch = decoder.batch_tokens

        def compute(tokens: np.ndarray) -> None:
            # In pieces, so that an interrupt has not to wait for all of it.
            for begin in range(0, len(tokens), batch):
                decoder.prefill(tokens[begin : begin + batch])

        def rate() -> float:
            decoder.truncate(0)
            begun = time.perf_counter()
            compute(prompt)
            return n_tokens / (time.perf_counter() - begun)

        decoder.truncate(0)
        compute(prompt[:batch])
        return self._computed(
            "prefill", rate, peer, self._model.token_bytes, min(batch, n_tokens), n_tokens
        )

    def _decode_seconds(self, context: int) -> list[float]:
        """Seconds of each token of a piece that begins behind the context."""
        decoder = self._decoder
        self._begin_at(context)
        times: list[float] = []
        end = time.perf_counter() + self._effort.seconds
        most = min(_MOST_TOKENS, decoder.context_length - decoder.position - 1)
        while len(times) < most:
            start = time.perf_counter()
            decoder.next_token(self._sampler)
            now = time.perf_counter()
            times.append(now - start)
            if now >= end and len(times) >= _LEAST_TOKENS:
                break
        return times

    def _linear_fraction(self, context: int) -> float:
        """Time in linear layers over all time; apart from the rates, as it takes time itself."""
        self._begin_at(context)
        decoder = self._decoder
        most = min(_MOST_TOKENS, decoder.context_length - decoder.position - 1)
        with timed_linears(decoder) as timer:
            begun = time.perf_counter()
            for done in range(most):
                decoder.next_token(self._sampler)
                elapsed = time.perf_counter() - begun
                if elapsed >= self._effort.seconds and done + 1 >= _LEAST_TOKENS:
                    break
            return timer.seconds() / elapsed

    def _begin_at(self, context: int) -> None:
        """The context, one token and a drawn one; the threads are awake afterwards."""
        decoder = self._decoder
        decoder.truncate(context)
        decoder.prefill(self._prompt[:1])
        decoder.next_token(self._sampler)

    def _read(
        self,
        kind: str,
        rate: Callable[[], float],
        peer: PeerRuns | None,
        moved: int,
        tokens: int | None = None,
        context: int | None = None,
    ) -> Row:
        """A row of one token at a time, whose limit is the read bandwidth."""
        threads, effort = self._decoder.threads, self._effort
        runners = [rate]
        if peer is not None:
            depth = context or 0
            runners.append(lambda: peer.decode(depth, effort.seconds))
        watch = CpuWatch(() if peer is None else (peer.pid,))
        turns = take_turns(
            lambda: self._limits.bandwidth(threads), runners, effort.rounds, effort.row_seconds
        )
        fraction = spread(turns.fractions(0, moved))
        row = self._row(kind, turns, peer, watch, moved)
        beside = spread([x / 1e9 for found in turns.limits for x in found])
        macs = self._macs
        if context is not None:
            macs += self._model.spec.vocab_size * self._model.spec.hidden_size
        return row.changed(
            macs_per_token=macs,
            fraction_of_bandwidth=fraction.median,
            fraction_spread=fraction.range,
            bandwidth_gb_per_s=beside.median,
            bandwidth_spread=beside.range,
            peer_fraction_of_bandwidth=None
            if peer is None
            else spread(turns.fractions(1, peer.bytes_per_token)).median,
            in_cache=moved < self._cache_bytes,
            tokens=tokens,
            context=context,
        )

    def _computed(
        self,
        kind: str,
        rate: Callable[[], float],
        peer: PeerRuns | None,
        weight_bytes: int,
        batch: int,
        tokens: int,
    ) -> Row:
        """A row of many tokens at once, whose limit is the rate of multiply-adds."""
        threads, effort, peak = self._decoder.threads, self._effort, self._peak
        runners = [rate]
        if peer is not None:
            runners.append(lambda: peer.prefill(tokens))
        watch = CpuWatch(() if peer is None else (peer.pid,))
        turns = take_turns(
            (lambda: 1.0) if peak is None else (lambda: self._limits.peak(peak, threads)),
            runners,
            effort.rounds,
            effort.row_seconds,
        )
        moved = weight_bytes // batch
        row = self._row(kind, turns, peer, watch, moved)
        bandwidth = self._limits.bandwidth(threads)
        row = row.changed(
            tokens=tokens,
            fraction_of_bandwidth=(row.gb_per_s or 0.0) * 1e9 / bandwidth,
            bandwidth_gb_per_s=bandwidth / 1e9,
            in_cache=weight_bytes < self._cache_bytes,
            peer_bytes_per_token=None if peer is None else peer.bytes_per_token // batch,
        )
        if peak is None:
            return row
        fraction = spread(turns.fractions(0, self._macs))
        return row.changed(
            peak=peak,
            peak_macs_per_s=statistics.median(turns.limits[0]),
            fraction_of_peak=fraction.median,
            fraction_spread=fraction.range,
        )

    def _row(
        self, kind: str, turns: Turns, peer: PeerRuns | None, watch: CpuWatch, moved: int
    ) -> Row:
        load = watch.load()
        ours = spread(turns.rates[0])
        row = Row(
            kind=kind,
            shape=self._model.name,
            format=self._model.format,
            isa=self._decoder.isa,
            threads=self._decoder.threads,
            tokens_per_s=ours.median,
            bytes_per_token=moved,
            gb_per_s=ours.median * moved / 1e9,
            spread=ours.range,
            rounds=len(turns.rates[0]),
            macs_per_token=self._macs,
            foreign_cpu=load.foreign,
            steal_cpu=load.steal,
        )
        if peer is None:
            return row
        theirs: Spread = spread(turns.rates[1])
        ratio = spread(turns.ratios())
        return row.changed(
            peer=peer.name,
            peer_tokens_per_s=theirs.median,
            peer_spread=theirs.range,
            peer_bytes_per_token=peer.bytes_per_token,
            peer_gb_per_s=theirs.median * peer.bytes_per_token / 1e9,
            ratio=ratio.median,
            ratio_spread=ratio.range,
        )
