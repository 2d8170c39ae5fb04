"""aqlm_1x16_g16: one codebook of 65536 vectors for every 16 weights; 1 bit per weight.

To the codes come 1 MiB of codebook and 4 bytes per row.
Layout, products and errors: families/codebook.py.
Source: Egiazarian et al. 2024 (AQLM), section 3.
"""

from __future__ import annotations

from qh_runtime.formats.families.codebook import aqlm

FORMAT = aqlm(1, 16, 16)
