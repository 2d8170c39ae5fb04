"""Checkpoints: bytes that strangers wrote, turned into checked, named raw tensors and settings.

Containers (`safetensors`) know bytes, `layouts/` know what a quantization scheme's tensors mean;
neither knows an architecture. Hostile until checked: the limits stand in the file that checks them.

May import: NumPy, `qh_kernels.mapped_files`, `qh_runtime.errors`, `qh_runtime.formats`; no NumPy
is loaded for headers. Called by packing, the loader, the store and tests.
"""

from __future__ import annotations

from qh_runtime.checkpoints.config import CheckpointConfig, read_config
from qh_runtime.checkpoints.folder import open_checkpoint
from qh_runtime.checkpoints.reader import TensorInfo, TensorSource

__all__ = [
    "CheckpointConfig",
    "TensorInfo",
    "TensorSource",
    "open_checkpoint",
    "read_config",
]
