"""Which instruction sets run here, and which one to use.

The native layer asks the CPU and the operating system; `QH_FORCE_ISA` is read here, at each call
of `best` and `forced`, and nowhere else.
"""

from __future__ import annotations

import os

from qh_kernels.errors import KernelError

__all__ = ["FORCE_VARIABLE", "available", "best", "forced", "require"]

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

    name = forced()
    return _native.best_isa() if name is None else name


def forced() -> str | None:
    """Return the instruction set of QH_FORCE_ISA, None where that is not set.

    Raises:
        KernelError: it names one that does not run here; facts: isa, available.
    """
    name = os.environ.get(FORCE_VARIABLE, "")
    if not name:
        return None
    try:
        return require(name)
    except KernelError as error:
        raise KernelError(
            f"{FORCE_VARIABLE}={name}: {error.message}", hint=error.hint, **error.facts
        ) from error
