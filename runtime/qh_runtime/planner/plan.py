"""Plan: itemised bytes of a model on this machine, whether they fit, and which context they allow.

The loader makes the plan first and allocates from it; screens, `--json` and errors show the same
object. Units: bytes here; GB in words are 10**9 bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from qh_kernels.kv_cache import KvType
from qh_runtime.architectures.base import DecoderSpec, LinearSpec
from qh_runtime.errors import DoesNotFitError, PlanError
from qh_runtime.formats import base as formats
from qh_runtime.hardware.facts import Fact
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.options import LoadOptions
from qh_runtime.planner.memory_model import (
    BATCH_TOKENS,
    kv_cache_bytes,
    norm_bytes,
    runtime_bytes,
    scratch_bytes,
)
from qh_runtime.units import gigabytes

__all__ = ["Plan", "PlanItem", "WeightFormats", "make_plan", "packed_formats"]

# A context that nobody asked for leaves a quarter of the available memory to other programs and to
# the file cache that the mapped weights live in, and takes at most an eighth for the KV cache.
CONTEXT_SHARE = 0.75
KV_CACHE_SHARE = 0.125
# Below this a conversation is cut after a few turns, so it is not chosen for the share's sake.
_SMALLEST_CONTEXT = 512
# Taken when the machine does not tell how much memory there is; such a load needs --force.
_BLIND_CONTEXT = 4096

# "copied": what is read for every token is copied from its file, the rest is mapped.
Placement = Literal["mapped", "allocated", "copied"]
Group = Literal["weights", "kv_cache", "scratch", "runtime"]


@dataclass(frozen=True)
class WeightFormats:
    """Which format each matrix is held in.

    Attributes:
        linear: of the linear layers of the blocks. embedding, head: of these; a tied head shares
            the embedding's bytes and its own entry is not read.
        head_scan: of the head once more, in few bits; None where there is none.
        overrides: module name to format, for single matrices that differ.
        placement: weights are mapped from a file, allocated, or copied where that is faster.
    """

    linear: str
    embedding: str
    head: str
    head_scan: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    placement: Placement = "mapped"


@dataclass(frozen=True)
class PlanItem:
    """One line of the sum.

    Attributes:
        bytes: in memory while the model runs.
        file_bytes: of these, bytes that lie in a mapped file.
    """

    name: str
    group: Group
    bytes: int
    file_bytes: int
    placement: Placement
    note: str


@dataclass(frozen=True)
class Plan:
    """What a model will take, and with which numbers it is to be loaded.

    Attributes:
        available_bytes: what this process may hold in all; None when the machine does not tell.
        context_source: "asked", or the rule by which context_length was chosen.
        kv_type: "f16", "int8" or "f32".
        batch_tokens: prompt tokens that go through a layer together.
        alternatives: what would fit instead, when this does not.
    """

    model_type: str
    items: tuple[PlanItem, ...]
    available_bytes: int | None
    available_source: str
    context_length: int
    context_source: str
    threads: int
    threads_source: str
    kv_type: KvType
    batch_tokens: int
    alternatives: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Sum of all items."""
        return sum(item.bytes for item in self.items)

    @property
    def fits(self) -> bool:
        """Whether the total is within what is available; False when that is not known."""
        return self.available_bytes is not None and self.total_bytes <= self.available_bytes

    def group_bytes(self, group: Group) -> int:
        """Sum of the items of one group."""
        return sum(item.bytes for item in self.items if item.group == group)

    def require_fit(self) -> None:
        """Return normally if the plan fits.

        Raises:
            DoesNotFitError: facts required_bytes, available_bytes, alternatives, plan.
        """
        if self.fits:
            return
        if self.available_bytes is None:
            found = f"an unknown amount ({self.available_source})"
        else:
            found = f"{gigabytes(self.available_bytes)} available ({self.available_source})"
        sums = ", ".join(f"{x.name} {gigabytes(x.bytes)}" for x in self.items)
        raise DoesNotFitError(
            f"{self.model_type} model with {self.context_length} tokens of context: needs "
            f"{gigabytes(self.total_bytes)} ({sums}), found {found}",
            hint=" or ".join((*self.alternatives, "add --force to load it all the same")),
            required_bytes=self.total_bytes,
            available_bytes=self.available_bytes,
            alternatives=self.alternatives,
            plan=self.to_dict(),
        )

    def explain(self) -> tuple[str, ...]:
        """Return the sum, the verdict's numbers and the choices as lines of text."""
        lines = [
            f"{gigabytes(x.bytes):>10}  {x.name:10} {x.placement}, {x.note}" for x in self.items
        ]
        lines.append(f"{gigabytes(self.total_bytes):>10}  total")
        if self.available_bytes is None:
            lines.append(f"{'unknown':>10}  available: {self.available_source}")
        else:
            lines.append(
                f"{gigabytes(self.available_bytes):>10}  available: {self.available_source}"
            )
        lines.append(f"context {self.context_length:,} tokens ({self.context_source})")
        lines.append(f"threads {self.threads} ({self.threads_source})")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with the derived total and verdict."""
        plain = dataclasses.asdict(self)
        return {**plain, "total_bytes": self.total_bytes, "fits": self.fits}


def make_plan(
    spec: DecoderSpec, weights: WeightFormats, profile: HardwareProfile, options: LoadOptions
) -> Plan:
    """Return the plan of loading these weights with these options on this machine.

    A plan that does not fit is returned, not refused; see `Plan.require_fit`.

    Raises:
        PlanError: a context length or thread count that the model or the decoder cannot take.
            Facts: field, expected, found.
        FormatError: an unknown format name.
    """
    threads, threads_source = _threads(profile, options)
    memory = _available(profile)
    fixed = (*_weight_items(spec, weights), _runtime_item(spec, profile.memory.process_bytes))

    def at(context_length: int, source: str, kv_type: KvType | None = None) -> Plan:
        kept: KvType = "f32" if options.exact else kv_type or options.kv_type
        return Plan(
            model_type=spec.model_type,
            items=(*fixed, *_context_items(spec, context_length, threads, kept)),
            available_bytes=memory.value,
            available_source=memory.source,
            context_length=context_length,
            context_source=source,
            threads=threads,
            threads_source=threads_source,
            kv_type=kept,
            batch_tokens=BATCH_TOKENS,
        )

    if options.context_length is None:
        plan = _choose_context(spec, at)
    else:
        _check_context(spec, options.context_length)
        plan = at(options.context_length, "asked")
    if plan.fits:
        return plan
    return dataclasses.replace(plan, alternatives=_alternatives(spec, weights, plan, at))


def packed_formats(weights: WeightFormats, name: str) -> WeightFormats:
    """The formats after `--pack name`: linear layers in it, embedding and head in int8.

    The same rule as `qh_runtime.packing.plan_matrices`, for a plan of what is not opened.
    """
    return dataclasses.replace(weights, linear=name, embedding="int8", head="int8", overrides={})


def context_ladder(spec: DecoderSpec) -> tuple[int, ...]:
    """Context lengths to choose from, ascending: powers of two, one and a half of them, the most.

    The last is max_position_embeddings.
    """
    most = spec.max_position_embeddings
    steps = {most}
    power = 64
    while power < most:
        steps.add(power)
        if power >= 1024 and power * 3 // 2 < most:
            steps.add(power * 3 // 2)
        power *= 2
    return tuple(sorted(x for x in steps if x <= most))


class _PlanAt(Protocol):
    """The plan with another context, and another type of KV cache."""

    def __call__(self, context_length: int, source: str, kv_type: KvType | None = None) -> Plan: ...


def _choose_context(spec: DecoderSpec, at: _PlanAt) -> Plan:
    """The longest context within the shares, or up to 512 tokens where only those fit at all.

    Each of the two rules gives no shorter context with more memory, and so does the longer of them.
    """
    ladder = context_ladder(spec)
    if at(ladder[0], "").available_bytes is None:
        known = [x for x in ladder if x <= _BLIND_CONTEXT] or [ladder[0]]
        return at(known[-1], "available memory is not known")
    short = [x for x in ladder if x <= _SMALLEST_CONTEXT] or [ladder[0]]
    tight = "memory is tight: the longest up to 512 that fits"
    chosen = next((x for x in reversed(short) if at(x, tight).fits), short[-1])
    for context_length in reversed(ladder):
        if context_length < chosen:
            break
        plan = at(context_length, f"longest within {CONTEXT_SHARE:.0%} of available memory")
        available = plan.available_bytes or 0
        cache = plan.group_bytes("kv_cache")
        if plan.total_bytes <= available * CONTEXT_SHARE and cache <= available * KV_CACHE_SHARE:
            return plan
    return at(chosen, tight)


def _check_context(spec: DecoderSpec, context_length: int) -> None:
    most = spec.max_position_embeddings
    if not 1 <= context_length <= most:
        raise PlanError(
            f"context length: expected 1 to {most} tokens (max_position_embeddings of the model), "
            f"found {context_length}",
            hint=f"choose at most {most}, or leave it out",
            field="context_length",
            expected=(1, most),
            found=context_length,
        )


def _threads(profile: HardwareProfile, options: LoadOptions) -> tuple[int, str]:
    if options.threads is None:
        return profile.usable_threads, profile.cpu.usable_threads.source
    most = max(profile.cpu.logical_cores.value or 1, profile.usable_threads)
    if not 1 <= options.threads <= most:
        raise PlanError(
            f"threads: expected 1 to {most} (logical processors), found {options.threads}",
            hint=f"leave it out for {profile.usable_threads}",
            field="threads",
            expected=(1, most),
            found=options.threads,
        )
    return options.threads, "asked"


def _weight_items(spec: DecoderSpec, weights: WeightFormats) -> tuple[PlanItem, ...]:
    placement = weights.placement
    scanned = weights.head_scan is not None

    def size(linear: LinearSpec, name: str) -> int:
        chosen = formats.get(weights.overrides.get(linear.name, name))
        return chosen.nbytes((linear.out_features, linear.in_features))

    def item(name: str, count: int, note: str, *, every_token: bool) -> PlanItem:
        # What is read for a token now and then stays in its file where the rest is copied.
        where = "mapped" if placement == "copied" and not every_token else placement
        in_file = count if where == "mapped" else 0
        return PlanItem(name, "weights", count, in_file, where, note)

    embedding = LinearSpec(spec.embedding, spec.vocab_size, spec.hidden_size)
    linears = [linear for layer in spec.layers for linear in layer.linears]
    items = [
        item(
            "embedding",
            size(embedding, weights.embedding),
            weights.embedding,
            every_token=spec.tied_head and not scanned,
        ),
        item(
            "linears",
            sum(size(x, weights.linear) for x in linears),
            weights.linear,
            every_token=True,
        ),
    ]
    if spec.tied_head:
        items[0] = dataclasses.replace(items[0], note=f"{weights.embedding}, also the head")
    else:
        head = size(spec.head, weights.head)
        items.insert(1, item("head", head, weights.head, every_token=not scanned))
    if weights.head_scan is not None:
        count = formats.get(weights.head_scan).nbytes((spec.vocab_size, spec.hidden_size))
        note = f"{weights.head_scan}, read for every token in place of the head"
        items.append(item("head scan", count, note, every_token=True))
    norms = PlanItem("norms", "weights", norm_bytes(spec), 0, "allocated", "f32, with biases")
    return (*items, norms)


def _available(profile: HardwareProfile) -> Fact[int]:
    """What this process may hold in all: what is usable, and what it holds already.

    The plan counts the whole process, so both sides do. Of what it holds only the anonymous part
    is added: its file pages are within what the system calls available.
    """
    usable, held = profile.memory.usable_bytes, profile.memory.process_anonymous_bytes.value
    if usable.value is None or not held:
        return usable
    return Fact(usable.value + held, f"{usable.source}, and what this process holds already")


def _runtime_item(spec: DecoderSpec, process: Fact[int]) -> PlanItem:
    count = runtime_bytes(spec, process.value)
    return PlanItem("runtime", "runtime", count, 0, "allocated", "process and tokenizer")


def _context_items(
    spec: DecoderSpec, context_length: int, threads: int, kv_type: KvType
) -> tuple[PlanItem, ...]:
    cache = kv_cache_bytes(spec, context_length, kv_type)
    note = f"{kv_type}, {context_length} tokens"
    if kv_type != "f32":
        other: KvType = "f16" if kv_type == "int8" else "int8"
        note += f"; {other} takes {gigabytes(kv_cache_bytes(spec, context_length, other))}"
    scratch = scratch_bytes(spec, context_length, threads)
    return (
        PlanItem("kv cache", "kv_cache", cache, 0, "allocated", note),
        PlanItem("scratch", "scratch", scratch, 0, "allocated", f"batches of {BATCH_TOKENS}"),
    )


def _alternatives(
    spec: DecoderSpec, weights: WeightFormats, plan: Plan, at: _PlanAt
) -> tuple[str, ...]:
    """What to ask for instead, each checked to fit; empty when nothing does."""
    found = []
    if plan.kv_type == "f16" and at(plan.context_length, "", "int8").fits:
        found.append("--kv int8")
    for context_length in reversed(context_ladder(spec)):
        if context_length < plan.context_length and at(context_length, "").fits:
            found.append(f"--context {context_length}")
            break
    available = plan.available_bytes or 0
    dense = weights.linear in ("f32", "f16", "bf16")
    for name in ("int8", "int4_g32") if dense else ():
        packed = packed_formats(weights, name)
        saved = sum(x.bytes for x in _weight_items(spec, weights)) - sum(
            x.bytes for x in _weight_items(spec, packed)
        )
        if plan.total_bytes - saved <= available:
            found.append(f"--pack {name}")
            break
    return tuple(found)
