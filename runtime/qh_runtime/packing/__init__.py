"""Packing: from checked raw tensors to everything the C++ decoder needs, mapped where possible.

`plan_matrices` says which matrix gets which format and how many bytes, without reading data;
`load_packed_model` does it: dense matrices map straight from the checkpoint, packed ones are
written once to a cache folder and mapped from then on.

May import: `qh_kernels.decoder`, `qh_runtime.{architectures,checkpoints,errors,formats}`, NumPy,
filelock. Called by the loader, the planner and tests.
"""

from __future__ import annotations

from qh_runtime.packing.matrices import MatrixPlan, plan_matrices
from qh_runtime.packing.packed_model import PackedModel, load_packed_model

__all__ = ["MatrixPlan", "PackedModel", "load_packed_model", "plan_matrices"]
