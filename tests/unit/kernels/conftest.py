"""Every kernel test runs on every instruction set of this build; where the machine lacks one, the
skip says so. Instruction sets of other processors run in tests/native under emulation."""

from __future__ import annotations

import pytest

from qh_kernels import isa as instruction_sets
from qh_kernels.build_info import build_info


@pytest.fixture(params=build_info().isas)
def isa(request: pytest.FixtureRequest) -> str:
    """Name of an instruction set that runs here."""
    name: str = request.param
    if name not in instruction_sets.available():
        pytest.skip(f"instruction set {name} does not run on this machine")
    return name
