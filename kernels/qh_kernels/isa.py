"""Which instruction sets run here, and which one to use.

The native layer asks the CPU and the operating system; `QH_FORCE_ISA` is read here, at each call
of `best`, and nowhere else.
"""

from __future__ import annotations

import os

from qh_kernels.errors import KernelError

__all__ = ["FORCE_VARIABLE", "available", "best", "require"]

FORCE_VARIABLE = "QH_FORCE_ISA"


def available() -> tuple[str, ...]:
    """Return the instruction sets of this build that this machine can run, simplest first."""
    from qh_kernels import _native

    return tuple(_native.available_isas())


def require(name: str) -> str:
    """Return name where it runs here.

    Raises:
        KernelError: no such instruction set, or neither built nor supported here; facts: isa,
            available.
    """
    from qh_kernels import _native

    return _native.table_name(name)


def best() -> str:
    """Return the instruction set to use: that of QH_FORCE_ISA where set, else the fastest.

    Raises:
        KernelError: QH_FORCE_ISA names one that does not run here; facts: isa, available.
    """
    from qh_kernels import _native

    forced = os.environ.get(FORCE_VARIABLE, "")
    if not forced:
        return _native.best_isa()
    try:
        return require(forced)
    except KernelError as error:
        raise KernelError(
            f"{FORCE_VARIABLE}={forced}: {error.message}", hint=error.hint, **error.facts
        ) from error
