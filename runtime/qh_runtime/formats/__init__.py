"""Weight formats: one packed form per file; the folder is the registry (import by name).

Each file is the specification of its layout: NumPy `pack` and `unpack`, to which the C++ kernels
are held. `base.py` draws what the packed layouts share; `families/` holds the code that formats of one
family share, so that a further format of a known family is one small file.

May import: NumPy, `qh_runtime.errors`. Called by the planner, packing, the reference and tests.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from qh_runtime.errors import FormatError
from qh_runtime.formats.base import WeightFormat

__all__ = ["WeightFormat", "get", "names"]

_NOT_FORMATS = frozenset({"base", "families"})


@cache
def names() -> tuple[str, ...]:
    """Names of all weight formats, sorted; each is a module of this folder."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name not in _NOT_FORMATS))


@cache
def get(name: str) -> WeightFormat:
    """Return the weight format of this name.

    Raises:
        FormatError: no format has this name. Facts: format, known.
    """
    if name not in names():
        raise FormatError(
            f"weight format {name!r}: expected one of {', '.join(names())}",
            hint="choose one of these",
            format=name,
            known=names(),
        )
    module = importlib.import_module(f"{__name__}.{name}")
    found: WeightFormat = module.FORMAT
    return found
