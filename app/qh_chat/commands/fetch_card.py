"""The card of a model that is to be fetched, as JSON data."""

from __future__ import annotations

from typing import Any

from qh_chat.commands.output import plain
from qh_runtime.store.preflight import Preflight

__all__ = ["preflight_facts"]


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
