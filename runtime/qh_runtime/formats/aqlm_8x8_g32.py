"""aqlm_8x8_g32: eight codebooks of 256 vectors for every 32 weights; 2 bits per weight.

To the codes come 128 KiB of codebooks and 4 bytes per row.
Layout, products and errors: families/codebook.py.
Source: Egiazarian et al. 2024 (AQLM), section 3.
"""

from __future__ import annotations

from qh_runtime.formats.families.codebook import aqlm

FORMAT = aqlm(8, 8, 32, 13)
