"""PlannedModel: what loading a checkpoint would take, from its config and tensor headers alone.

The same line for files on this machine (the loader) and for files that are still on a hub (the
store's preflight), so that what is refused later is refused before gigabytes move.

May import what the loader may; called by the loader and the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qh_runtime.architectures import DecoderSpec, spec_from_config
from qh_runtime.checkpoints import TensorSource
from qh_runtime.checkpoints.layouts import Layout, layout_for
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.options import LoadOptions
from qh_runtime.packing import MatrixPlan, plan_matrices
from qh_runtime.planner.plan import Plan, WeightFormats, make_plan

__all__ = ["PlannedModel", "plan_checkpoint"]

# Less than this lies in caches, or is read in no time.
_LEAST_COPIED_BYTES = 64 << 20


@dataclass(frozen=True)
class PlannedModel:
    """A model whose headers were checked and whose memory was added up, with no weights read.

    Attributes:
        matrices: all that packing gives. scans_head: the plan counts the scan of the head; without
            that it stays in its file. copies_weights: what is read for every token is copied from
            its file into large pages.
    """

    spec: DecoderSpec
    source: TensorSource
    layout: Layout
    matrices: tuple[MatrixPlan, ...]
    plan: Plan
    scans_head: bool
    copies_weights: bool

    @property
    def format(self) -> str:
        """The weight format that most bytes of the linear layers are in."""
        tables = (self.spec.embedding, self.spec.head.name)
        sizes: Counter[str] = Counter()
        for matrix in self.matrices:
            if matrix.module not in tables:
                sizes[matrix.format] += matrix.nbytes
        return sizes.most_common(1)[0][0]

    @property
    def packed_bytes(self) -> int:
        """What the matrices that are packed while loading take."""
        return sum(x.nbytes for x in self.matrices if x.repacked)


def plan_checkpoint(
    config: Mapping[str, Any],
    open_source: Callable[[], TensorSource],
    options: LoadOptions,
    profile: HardwareProfile,
) -> PlannedModel:
    """Return what loading a checkpoint with these options would take on this machine.

    A plan that does not fit is returned, not refused.

    Args:
        config: of config.json.
        open_source: called once the architecture and the layout are known to be supported.

    Raises:
        CheckpointError: the files break a rule or the model is not supported.
        PlanError: the options cannot be met by any memory.
    """
    spec = spec_from_config(config)
    layout = layout_for(config)
    source = open_source()
    matrices = plan_matrices(spec, source, layout, options.pack)
    weights = _weight_formats(spec, matrices)
    scan = next((x.format for x in matrices if x.is_scan), None)
    scans_head = False
    if scan is not None and not options.exact:
        # It makes answers faster and nothing else, so it never is why a model does not fit.
        scanning = replace(weights, head_scan=scan)
        scans_head = make_plan(spec, scanning, profile, options).fits
        weights = scanning if scans_head else weights
    plan = make_plan(spec, weights, profile, options)
    copying = make_plan(spec, replace(weights, placement="copied"), profile, options)
    copies = _has_room_to_copy(copying, profile)
    chosen = copying if copies else plan
    return PlannedModel(spec, source, layout, matrices, chosen, scans_head, copies)


def _has_room_to_copy(copying: Plan, profile: HardwareProfile) -> bool:
    """Whether copies in large pages, and the files that they are from, fit side by side."""
    copied = sum(x.bytes for x in copying.items if x.placement == "copied")
    if not profile.memory.large_pages.value or copying.available_bytes is None:
        return False
    if copied < _LEAST_COPIED_BYTES:
        return False
    return copying.total_bytes + copied <= copying.available_bytes


def _weight_formats(spec: DecoderSpec, matrices: Sequence[MatrixPlan]) -> WeightFormats:
    """The planned matrices in the planner's words, each named, so none is guessed."""
    by_name = {x.name: x.format for x in matrices if not x.is_scan}
    embedding = by_name[spec.embedding]
    return WeightFormats(
        linear=by_name[spec.layers[0].q.name],
        embedding=embedding,
        head=embedding if spec.tied_head else by_name[spec.head.name],
        overrides=by_name,
    )
