"""SIMD kernels, the C++ decoder and its sampler behind small typed wrappers.

May import: NumPy and its own native extension. Called by `qh_runtime`; knows nothing of files,
checkpoints, hardware policy or screens. Importing this package loads no native code.
"""

from qh_kernels.errors import KernelError, QhError

__all__ = ["KernelError", "QhError"]
