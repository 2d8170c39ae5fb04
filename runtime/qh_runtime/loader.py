"""From a named model to a live session: config, plan, tokenizer, weights, decoder, in this order.

Nothing large is opened before the plan says that it fits, and the decoder is made with the plan's
numbers, so what was shown is what is allocated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qh_runtime.architectures import decoder_shape
from qh_runtime.checkpoints import read_config
from qh_runtime.errors import CheckpointError
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.options import LoadOptions
from qh_runtime.packing import load_packed_model
from qh_runtime.planned_model import PlannedModel, plan_checkpoint
from qh_runtime.session.events import Engine, EngineInfo
from qh_runtime.store.entry import ModelEntry
from qh_runtime.store.integrity import check
from qh_runtime.store.source import kept_pack, open_source, options_for

__all__ = [
    "LoadProgress",
    "LoadStage",
    "OnLoadProgress",
    "PlannedModel",
    "load_model",
    "plan_model",
]

_log = logging.getLogger(__name__)

LoadStage = Literal["plan", "tokenizer", "pack", "decoder", "self-test", "ready"]


@dataclass(frozen=True)
class LoadProgress:
    """How far loading is. Bytes count within the stage and are 0 where a stage is instant."""

    stage: LoadStage
    done_bytes: int = 0
    total_bytes: int = 0


# Whatever it raises stops the load and comes out of load_model; nothing half-made stays on disk.
OnLoadProgress = Callable[[LoadProgress], None]


def plan_model(entry: ModelEntry, options: LoadOptions, profile: HardwareProfile) -> PlannedModel:
    """Return what loading this model would take; reads config and tensor headers only.

    A plan that does not fit is returned, not refused.

    Raises:
        CheckpointError: the files break a rule or the model is not supported.
        PlanError: the options cannot be met by any memory.
    """
    try:
        config = read_config(entry.folder).model
        options = options_for(entry.folder, options)
        return plan_checkpoint(config, lambda: open_source(entry.folder), options, profile)
    except CheckpointError as error:
        if entry.manifest is None:
            raise
        # Of a folder the person knows where it is; of the store, the model's name.
        facts = {"name": entry.name, **error.facts}
        raise type(error)(f"{entry.name}: {error.message}", hint=error.hint, **facts) from error


def load_model(
    entry: ModelEntry,
    options: LoadOptions,
    profile: HardwareProfile,
    cache_dir: Path,
    on_progress: OnLoadProgress | None = None,
) -> Engine:
    """Return a session over this model.

    Args:
        cache_dir: where packed weights are kept and mapped from the next time.
        on_progress: called from this thread.

    Raises:
        DoesNotFitError: the plan needs more memory than there is and options.force is False.
        CheckpointError, IntegrityError, KernelError: the model does not compute what it should (see
            `first_load`), or its files break a rule.
        QhError: from any of the steps; the message names the object and the next step.
    """
    # Here and not at the top: the native extension is loaded by the first model, not by the app.
    from qh_kernels.decoder import Decoder
    from qh_runtime.first_load import Subject, checked_decoder, prompt_of
    from qh_runtime.session.moving_weights import WeightMover
    from qh_runtime.session.session import NativeSession
    from qh_runtime.tokenizers.chat_template import load_chat_template
    from qh_runtime.tokenizers.from_hf import load_tokenizer

    def report(stage: LoadStage, done: int = 0, total: int = 0) -> None:
        if on_progress is not None:
            on_progress(LoadProgress(stage, done, total))

    report("plan")
    if entry.layout is not None and entry.manifest is not None:
        check(entry.layout, entry.manifest)
    options = options_for(entry.folder, options)
    planned = plan_model(entry, options, profile)
    plan, spec = planned.plan, planned.spec
    if not options.force:
        plan.require_fit()

    report("tokenizer")
    tokenizer = load_tokenizer(entry.folder)
    template = load_chat_template(entry.folder, tokenizer)

    total = planned.packed_bytes
    report("pack", 0, total)
    packed = load_packed_model(
        spec,
        planned.source,
        planned.layout,
        pack=options.pack,
        head_scan="auto" if planned.scans_head else "unused",
        cache_folder=cache_dir,
        memory_fallback=True,
        progress=lambda done, of: report("pack", done, of),
        threads=plan.threads,
        folder=entry.folder,
        kept_pack=kept_pack(planned.source),
    )
    assert packed is not None  # only a cancel function, which is not given, makes it None
    notes = (f"packed weights are not kept: {packed.reason}",) if packed.reason else ()

    def make(isa: str) -> Decoder:
        return Decoder(
            decoder_shape(spec),
            packed.weights,
            context_length=plan.context_length,
            threads=plan.threads,
            kv_type=plan.kv_type,
            exact=options.exact,
            batch_tokens=plan.batch_tokens,
            isa=isa,
        )

    report("decoder")
    subject = Subject(
        name=entry.name,
        spec=spec,
        source=planned.source,
        layout=planned.layout,
        packed=packed,
        prompt=prompt_of(tokenizer, spec.vocab_size, plan.context_length),
        exact=options.exact,
        kv_type=plan.kv_type,
        threads=plan.threads,
        asked_isa=options.isa,
        cpu=str(profile.cpu.name.value),
        folder=str(entry.folder.absolute()),
    )
    checked = checked_decoder(make, subject, cache_dir, lambda: report("self-test"))
    decoder = checked.decoder
    info = EngineInfo(
        name=entry.name,
        model_type=spec.model_type,
        parameters=spec.parameters,
        format=planned.format,
        device="CPU",
        isa=decoder.isa,
        threads=decoder.threads,
        context_length=decoder.context_length,
        planned_bytes=plan.total_bytes,
        notes=(*notes, *checked.notes),
    )
    _log.info(
        "%s: %s, weights %s (%d bytes mapped, %d in memory), plan %d bytes",
        entry.name,
        info,
        packed.origin,
        packed.mapped_bytes,
        packed.heap_bytes,
        plan.total_bytes,
    )
    report("ready")
    mover = WeightMover(decoder, packed.weights) if planned.copies_weights else None
    return NativeSession(decoder, tokenizer, template, info, packed.check_unchanged, mover)
