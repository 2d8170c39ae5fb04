"""Sentences about models of the store, the same on the command line and on screen.

They quote strangers: whoever shows one passes it through `inert` first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qh_runtime.units import gigabytes

if TYPE_CHECKING:
    from qh_runtime.store.disk import Pruning, Removal
    from qh_runtime.store.integrity import Finding
    from qh_runtime.store.manifest import Manifest
    from qh_runtime.store.preflight import Preflight
    from qh_runtime.store.pull import Transfer
    from qh_runtime.store.repair_model import Repaired
    from qh_runtime.store.transfer import TransferProgress

__all__ = [
    "DROP_STAGES",
    "card_lines",
    "card_rows",
    "dropped_text",
    "duration_text",
    "finding_text",
    "left_over_lines",
    "ready_text",
    "removal_text",
    "repaired_text",
    "sound_text",
    "transfer_note",
    "transfer_text",
]

DROP_STAGES = {"verify": "checking the source", "compare": "comparing the packed form", "keep": ""}
"""What the stages of removing a source are called; a silent one takes a moment."""

_PIECES = {
    "blob": "files",
    "pack": "packed weights",
    "part": "unfinished files",
    "self-test": "records of self-tests",
}
_LEFT_OVER = {
    "manifest": "manifests",
    "links": "folders of links",
    "blob": "files without a model",
    "part": "unfinished files that nobody goes on with",
    "pack": "packed weights without a model",
    "self-test": "records of self-tests without a model",
    "lock": "locks that nobody holds",
    "temporary": "temporary files",
}


def card_lines(preflight: Preflight, verb: str) -> list[str]:
    """Return what a person should know before gigabytes move."""
    rows = card_rows(preflight, verb)
    return [preflight.name, *(f"  {name:9} {value}" for name, value in rows)]


def card_rows(preflight: Preflight, verb: str) -> list[tuple[str, str]]:
    """Return the same as names and values.

    Args:
        verb: "fetch" or "copy".
    """
    listing, plan = preflight.listing, preflight.plan
    rows = [("licence", preflight.license or "not stated")]
    if preflight.gated:
        rows.append(("gated", "its terms had to be accepted on the hub"))
    if listing.commit:
        branch = f" ({listing.revision})" if listing.revision else ""
        rows.append(("commit", f"{listing.commit[:12]}{branch}"))
    rows.append(
        (
            "model",
            f"{preflight.model_type}, {preflight.parameters / 1e6:,.0f} million weights, "
            f"{preflight.format}",
        )
    )
    missing, total = gigabytes(preflight.download_bytes), gigabytes(preflight.total_bytes)
    rows.append((f"to {verb}", missing if missing == total else f"{missing} of {total}"))
    if preflight.packed_bytes:
        rows.append(("packed", f"{gigabytes(preflight.packed_bytes)} more at the first load"))
    if preflight.free_bytes is not None:
        after = preflight.free_bytes - preflight.download_bytes - preflight.packed_bytes
        rows.append(("disk", f"{gigabytes(max(0, after))} free afterwards"))
    available = (
        "an unknown amount" if plan.available_bytes is None else (gigabytes(plan.available_bytes))
    )
    rows.append(
        (
            "memory",
            f"{'fits' if plan.fits else 'DOES NOT FIT'}: needs {gigabytes(plan.total_bytes)} of "
            f"{available} with {plan.context_length:,} tokens of context",
        )
    )
    if not plan.fits and plan.alternatives:
        rows.append(("", f"would fit: {' or '.join(plan.alternatives)}"))
    # The sums of what does not fit are above.
    rows += [("note", x) for x in preflight.notes if not x.startswith("does not fit")]
    return rows


def ready_text(manifest: Manifest, *, up_to_date: bool) -> str:
    """The end of a pull or an import."""
    state = "is up to date" if up_to_date else "is ready"
    return f"{manifest.name} {state} ({gigabytes(manifest.total_bytes)})"


def transfer_text(event: Transfer) -> str:
    """File, bytes of total, rate and time left."""
    file = event.file
    done, total = gigabytes(event.done_bytes), gigabytes(event.total_bytes)
    share = f"{event.done_bytes / event.total_bytes:.0%}" if event.total_bytes else "100%"
    parts = [_shortened(file.path), f"{done} of {total} ({share})"]
    note = transfer_note(file)
    if note:
        parts.append(note)
    else:
        if event.bytes_per_s is not None:
            parts.append(f"{event.bytes_per_s / 1e6:.1f} MB/s")
        if event.left_s is not None:
            parts.append(f"{duration_text(event.left_s)} left")
    return "  ".join(parts)


def transfer_note(file: TransferProgress) -> str:
    """Why nothing arrives just now; "" where it does."""
    if file.state == "wait":
        return f"waiting: {file.note}"
    if file.state == "retry":
        return f"again: {file.note}"
    return "checking" if file.state == "verify" else ""


def duration_text(seconds: float) -> str:
    """Seconds in words: 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _shortened(path: str) -> str:
    """The end of a long name; shards differ there."""
    return path if len(path) <= 32 else f"…{path[-31:]}"


def sound_text(manifest: Manifest) -> str:
    """A model in which nothing is wrong."""
    size = gigabytes(manifest.total_bytes)
    return f"{manifest.name}: sound, {len(manifest.files)} files, {size}"


def finding_text(name: str, finding: Finding) -> str:
    """One thing that is wrong with a model."""
    bad = f" ({gigabytes(finding.bad_bytes)} are bad)" if finding.bad_bytes else ""
    return f"{name}: {finding.path}: {finding.problem}: {finding.message}{bad}"


def repaired_text(name: str, done: Repaired) -> str:
    """One thing that was put right."""
    fetched = f", {gigabytes(done.fetched_bytes)} fetched" if done.fetched_bytes else ""
    return f"{name}: {done.path}: repaired{fetched}"


def removal_text(removal: Removal) -> str:
    """What removing a model frees."""
    sizes: Counter[str] = Counter()
    for piece in removal.pieces:
        if piece.kind in _PIECES:
            sizes[_PIECES[piece.kind]] += piece.bytes
    parts = ", ".join(f"{gigabytes(size)} {name}" for name, size in sizes.items() if size)
    text = f"{removal.name}: frees {gigabytes(removal.freed_bytes)} ({parts or 'no files'})"
    if removal.shared_bytes:
        others = ", ".join(removal.shared_with)
        text += f"; {gigabytes(removal.shared_bytes)} stay, which {others} needs too"
    return text


def dropped_text(name: str, pack_format: str | None, freed_bytes: int) -> str:
    """The source of a model was removed."""
    text = f"{name}: its source is removed, {gigabytes(freed_bytes)} freed; "
    return f"{text}the {pack_format or 'packed'} form stands for it"


def left_over_lines(pruning: Pruning) -> Iterator[str]:
    """What no model needs, by kind, and why some of it stays."""
    sizes: Counter[str] = Counter()
    for piece in pruning.pieces:
        sizes[piece.kind] += piece.bytes
    for kind, size in sizes.items():
        # Locks and links take nothing that a person would look for.
        if size:
            yield f"{gigabytes(size):>9}  {_LEFT_OVER[kind]}"
    for reason in pruning.kept:
        yield f"kept: {reason}"
