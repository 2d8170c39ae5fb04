"""Frozen option objects that travel from the command line or the screens down to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ContextPolicy", "KvChoice", "LoadOptions", "SamplingParams"]

ContextPolicy = Literal["stop", "drop"]
KvChoice = Literal["f16", "int8"]


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        pack: weight format to pack dense linear layers into ("int8", "int4_g32", ...); None keeps
            what the checkpoint holds.
        context_length: tokens of KV cache; None lets the plan choose.
        threads: worker threads; None lets the hardware profile choose.
        kv_type: how keys and values are kept: "f16", or "int8" in about half the memory.
        exact: float32 activations and KV cache (the mode that oracles compare).
        force: load although the plan says it does not fit.
        isa: forces an instruction set by name; None takes the best (or QH_FORCE_ISA).
    """

    pack: str | None = None
    context_length: int | None = None
    threads: int | None = None
    kv_type: KvChoice = "f16"
    exact: bool = False
    force: bool = False
    isa: str | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, and when to stop.

    Attributes:
        temperature: 0 is greedy; 0..5.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the smallest set with this much probability; 1 keeps all.
        min_p: drop what is less likely than min_p times the likeliest; 0 keeps all.
        repetition_penalty: divides positive, multiplies negative logits of seen tokens; 1 is off.
        presence_penalty: subtracted once from the logit of each seen token; 0 is off.
        frequency_penalty: subtracted per occurrence; 0 is off.
        penalty_window: how many of the last tokens count as seen.
        seed: None draws a fresh one, which the statistics report.
        max_tokens: None means as long as the context lasts.
        stop: strings that end the answer; they are not part of it.
        context_policy: what happens when the context is full: "stop" ends the answer, "drop" leaves
            out the oldest turns of the prompt; either way an event says so.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 256
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = field(default=())
    context_policy: ContextPolicy = "drop"
