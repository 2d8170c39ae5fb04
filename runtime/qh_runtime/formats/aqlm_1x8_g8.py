"""aqlm_1x8_g8: one codebook of 256 vectors for every 8 weights; 1 bit per weight.

To the codes come 4 KiB of codebook and 4 bytes per row.
Layout, products and errors: families/codebook.py.
Source: Egiazarian et al. 2024 (AQLM), section 3.
"""

from __future__ import annotations

from qh_runtime.formats.families.codebook import aqlm

FORMAT = aqlm(1, 8, 8, 10)
