"""Weight formats: one packed form per file; the folder is the registry (import by name).

Each file is the specification of its layout: NumPy `pack` and `unpack`, to which the C++ kernels
are held. `base.py` draws what the packed layouts share; `families/` holds the code that formats of
one family share, so that a further format of a known family is one small file.

May import: NumPy, `qh_runtime.errors`. Called by the planner, packing, the reference and tests.
"""

from __future__ import annotations

from qh_runtime.formats.base import WeightFormat, get, names

__all__ = ["WeightFormat", "get", "names"]
