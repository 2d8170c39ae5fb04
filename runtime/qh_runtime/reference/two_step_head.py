"""What a head and a scan of it give together, in NumPy: the specification of best_rows.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder_model import RESCORED_ROWS

__all__ = ["two_step_logits"]

F32 = NDArray[np.float32]


def two_step_logits(scanned: F32, full: F32, unit: int) -> F32:
    """Logits (vocab_size,): those of the scan, and the RESCORED_ROWS largest of the head.

    Args:
        scanned, full: logits by the scan and by the head alone. Of equal ones the first are larger.
        unit: rows that are computed together: 1 for a dense head, those of a tile for a packed one.
    """
    best = np.argsort(-scanned, kind="stable")[:RESCORED_ROWS]
    again = np.zeros(-(-len(scanned) // unit), dtype=bool)
    again[best // unit] = True
    chosen: F32 = np.where(np.repeat(again, unit)[: len(scanned)], full, scanned)
    return chosen
