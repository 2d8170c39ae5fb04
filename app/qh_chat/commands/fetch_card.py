"""What a person should know before gigabytes move: the card, and the same as JSON data."""

from __future__ import annotations

from typing import Any

from qh_chat.commands.output import plain
from qh_runtime.store.preflight import Preflight
from qh_runtime.units import gigabytes

__all__ = ["card_lines", "preflight_facts"]


def card_lines(preflight: Preflight, verb: str) -> list[str]:
    """Return what a person should know before gigabytes move."""
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
    return [preflight.name, *(f"  {name:9} {value}" for name, value in rows)]


def preflight_facts(preflight: Preflight) -> dict[str, Any]:
    """The card as JSON data."""
    return {
        "name": preflight.name,
        "license": preflight.license,
        "gated": preflight.gated,
        "commit": preflight.listing.commit,
        "model_type": preflight.model_type,
        "format": preflight.format,
        "parameters": preflight.parameters,
        "total_bytes": preflight.total_bytes,
        "download_bytes": preflight.download_bytes,
        "packed_bytes": preflight.packed_bytes,
        "free_bytes": preflight.free_bytes,
        "fits": preflight.plan.fits,
        "plan": plain(preflight.plan.to_dict()),
        "notes": list(preflight.notes),
    }
