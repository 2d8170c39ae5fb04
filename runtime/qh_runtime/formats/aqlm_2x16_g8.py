"""aqlm_2x16_g8: two codebooks of 65536 vectors for every 8 weights; 4 bits per weight.

To the codes come 1 MiB of codebooks and 4 bytes per row.
Layout, products and errors: families/codebook.py.
Source: Egiazarian et al. 2024 (AQLM), section 3.
"""

from __future__ import annotations

from qh_runtime.formats.families.codebook import aqlm

FORMAT = aqlm(2, 16, 8)
