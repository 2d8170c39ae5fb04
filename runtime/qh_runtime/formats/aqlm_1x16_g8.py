"""aqlm_1x16_g8: one codebook of 65536 vectors for every 8 weights; 2 bits per weight.

To the codes come 512 KiB of codebook and 4 bytes per row.
Layout, products and errors: families/codebook.py.
Source: Egiazarian et al. 2024 (AQLM), section 3.
"""

from __future__ import annotations

from qh_runtime.formats.families.codebook import aqlm

FORMAT = aqlm(1, 16, 8)
