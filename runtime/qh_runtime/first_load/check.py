"""The check itself: which instruction set a model is run with, after it gave right results here.

    record found     its instruction set, its notes; nothing is computed
    packed rows      differ from the checkpoint's: refused
    one layer        differs from the reference: the next lower instruction set, or refused
    a sentence       not finite: refused with the tensor, or as a wrong result; else notes

An instruction set that was asked for by name is never changed: a wrong result is then a refusal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.checkpoints import TensorSource
from qh_runtime.checkpoints.layouts import Layout
from qh_runtime.errors import CheckpointError, FormatError, KernelError, QhError
from qh_runtime.first_load.prompt import Prompt, notes_on_logits
from qh_runtime.first_load.record import (
    Provenance,
    Record,
    find_record,
    keep_record,
    kernels_identity,
    record_key,
)
from qh_runtime.packing import PackedModel

if TYPE_CHECKING:
    from qh_kernels.decoder import Decoder, KvType
    from qh_runtime.first_load.layer import Arithmetic

__all__ = ["CheckedDecoder", "Subject", "checked_decoder"]

_log = logging.getLogger(__name__)

# Tokens that go through the layer: more than one batch of any kernel, and one left over.
_LAYER_TOKENS = 5
# Tensors that a note names one by one.
_NAMED_TENSORS = 3


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        name: of the model, for the log.
        exact, kv_type, threads: as its decoder gets them.
        asked_isa: the instruction set of the options, None where any is right.
        cpu: name of the processor; a record holds for this one.
        folder: of the checkpoint, for `du`; "" where there is none.
    """

    name: str
    spec: DecoderSpec
    source: TensorSource
    layout: Layout
    packed: PackedModel
    prompt: Prompt
    exact: bool
    kv_type: KvType
    threads: int
    asked_isa: str | None
    cpu: str
    folder: str = ""


@dataclass(frozen=True)
class CheckedDecoder:
    """A decoder with an empty KV cache, and what the person should know: one sentence each."""

    decoder: Decoder
    notes: tuple[str, ...]


class _NotFiniteError(KernelError):
    """Values overflowed though every weight is finite. Facts: object, isa."""


def checked_decoder(
    make: Callable[[str], Decoder],
    subject: Subject,
    records: Path,
    on_step: Callable[[], None],
) -> CheckedDecoder:
    """Return a decoder of the best instruction set that gives right results.

    Args:
        make: makes the decoder with an instruction set.
        records: folder of what passed before; need not exist.
        on_step: called before each part of a check that runs, never for a record; what it raises
            comes out of here.

    Raises:
        IntegrityError: packed weights are not those of the checkpoint. Facts: tensor, path.
        CheckpointError: weights are not finite (fact: tensor), or give all tokens the same logit.
        KernelError: results are wrong with every instruction set that may be used. Facts: object,
            isa, failures.
    """
    candidates = _candidates(subject.asked_isa)
    key = _key(subject, candidates[0])
    record = find_record(records, key)
    if record is not None and record.isa in candidates:
        return CheckedDecoder(make(record.isa), record.notes)
    try:
        checked = _first_right(make, subject, candidates, on_step)
    except QhError:
        # Weights that changed under the check explain everything else.
        subject.packed.check_unchanged()
        raise
    try:
        subject.packed.check_unchanged()
    except BaseException:
        checked.decoder.close()
        raise
    of = Provenance(subject.source.identity(), subject.folder, kernels_identity())
    keep_record(records, key, Record(checked.decoder.isa, checked.notes), of)
    return checked


def _first_right(
    make: Callable[[str], Decoder],
    subject: Subject,
    candidates: Sequence[str],
    on_step: Callable[[], None],
) -> CheckedDecoder:
    # Here and not at the top: a load that finds its record needs none of it.
    from qh_runtime.first_load.closeness import WrongResultError
    from qh_runtime.first_load.weights import compare_with_source, constant_weights

    start = time.perf_counter()
    on_step()
    compare_with_source(subject.spec, subject.source, subject.layout, subject.packed)
    constant = constant_weights(subject.spec, subject.packed.weights)
    failures: list[KernelError] = []
    for isa in candidates:
        try:
            decoder, more = _with_isa(make, subject, isa, on_step)
        except CheckpointError as error:
            blamed = _blamed(subject.spec, constant)
            if error.facts.get("rule") != "logits" or blamed is None:
                raise
            raise CheckpointError(
                f"{blamed}: one value all over; {error.message}",
                hint=error.hint,
                tensor=blamed,
                **error.facts,
            ) from error
        except (WrongResultError, _NotFiniteError) as error:
            _log.warning("%s: self-test: %s", subject.name, error)
            failures.append(error)
            if [type(x) for x in failures[-2:]] == [_NotFiniteError] * 2:
                break  # two that agree: so it is the model, and a third may take minutes
            continue
        seconds = time.perf_counter() - start
        _log.info("%s: self-test passed with %s in %.2f s", subject.name, isa, seconds)
        return CheckedDecoder(
            decoder, (*_fallback_notes(failures, isa), *_constant_notes(constant), *more)
        )
    raise _refusal(failures, exact=subject.exact)


def _candidates(asked: str | None) -> tuple[str, ...]:
    """Instruction sets that may be used, best first; the one that was asked for stands alone."""
    from qh_kernels import isa as instruction_sets

    if asked is not None:
        return (instruction_sets.require(asked),)
    if instruction_sets.forced() is not None:
        return (instruction_sets.best(),)
    simplest_first = instruction_sets.available()
    best = simplest_first.index(instruction_sets.best())
    return tuple(reversed(simplest_first[: best + 1]))


def _key(subject: Subject, isa: str) -> str:
    return record_key(
        (
            subject.source.identity(),
            subject.layout.key,
            subject.packed.matrices,
            subject.spec,
            subject.prompt,
            subject.exact,
            subject.kv_type,
            isa,
            subject.cpu,
            kernels_identity(),
        )
    )


def _constant_notes(constant: Sequence[str]) -> tuple[str, ...]:
    if not constant:
        return ()
    more = len(constant) - _NAMED_TENSORS
    others = f" and {more} more" if more > 0 else ""
    named = ", ".join(constant[:_NAMED_TENSORS])
    return (f"weights of one value all over, as in a damaged file: {named}{others}",)


def _blamed(spec: DecoderSpec, constant: Sequence[str]) -> str | None:
    """Of constant tensors, one that makes all logits the same; None where there is none."""
    decisive = (spec.final_norm, spec.head.name, spec.embedding)
    return next((name for name in decisive if name in constant), None)


def _with_isa(
    make: Callable[[str], Decoder], subject: Subject, isa: str, on_step: Callable[[], None]
) -> tuple[Decoder, tuple[str, ...]]:
    """(decoder, notes) after layer and sentence came out right."""
    from qh_runtime.first_load.layer import Arithmetic, check_layer, layers_to_check

    spec, weights, tokens = subject.spec, subject.packed.weights, subject.prompt.tokens
    how = Arithmetic(isa, subject.exact, subject.kv_type, subject.threads)
    try:
        for index in layers_to_check(weights):
            on_step()
            check_layer(spec, weights, index, tokens[:_LAYER_TOKENS], how)
        on_step()
        decoder = make(isa)
    except FormatError as error:
        raise CheckpointError(
            f"packed weights: {error.message}",
            hint="delete the file of packed weights; it is made again",
            path=str(subject.packed.pack_path),
        ) from error
    except KernelError as error:
        raise _explained(error, subject, how) from error
    try:
        notes = notes_on_logits(decoder.forward(tokens), subject.prompt)
        decoder.truncate(0)
    except KernelError as error:
        decoder.close()
        raise _explained(error, subject, how) from error
    except BaseException:
        decoder.close()
        raise
    return decoder, notes


def _explained(error: KernelError, subject: Subject, how: Arithmetic) -> Exception:
    """The error of values that are not finite, by its cause; any other error as it is."""
    from qh_runtime.first_load.overflow import find_not_finite

    if error.facts.get("expected") != "finite values":
        return error
    place = find_not_finite(subject.spec, subject.packed.weights, subject.prompt.tokens, how)
    if place.tensor is not None:
        return CheckpointError(
            f"{place.tensor}: expected finite weights, found NaN or infinity",
            hint="the checkpoint is damaged; download it again",
            tensor=place.tensor,
            expected="finite weights",
            found="NaN or infinity",
        )
    return _NotFiniteError(
        f"{place.where}: {how.isa}: expected finite values, found NaN or infinity",
        object=place.where,
        isa=how.isa,
        expected="finite values",
        found="NaN or infinity",
    )


def _fallback_notes(failures: Sequence[KernelError], isa: str) -> tuple[str, ...]:
    return tuple(
        f"{error.facts['isa']} gave a wrong result for {error.facts['object']}: using {isa}"
        for error in failures
    )


def _refusal(failures: Sequence[KernelError], *, exact: bool) -> Exception:
    """The error when no instruction set that may be used was right."""
    last = failures[-1]
    facts = {**last.facts, "failures": tuple(error.message for error in failures)}
    if isinstance(last, _NotFiniteError):
        other = "choose another checkpoint of this model"
        return CheckpointError(
            f"{last.facts['object']}: all weights are finite, but what comes of them is not: "
            f"expected finite values{'' if exact else ', and keys within float16'}, found NaN or "
            f"infinity with {last.facts['isa']}",
            hint=other if exact else f"load with --exact, or {other}",
            **facts,
        )
    if len(failures) == 1:
        return KernelError(
            f"self-test: {last.message}",
            hint="choose another instruction set, or leave the choice (QH_FORCE_ISA, isa)",
            **facts,
        )
    tried = "; ".join(error.message for error in failures)
    return KernelError(
        f"self-test: no instruction set computes this model right: {tried}",
        hint="run `qh-chat doctor`; the program or the memory of this machine is damaged",
        **facts,
    )
