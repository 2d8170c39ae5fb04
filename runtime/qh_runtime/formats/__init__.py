"""Weight formats: one packed form per file; the folder is the registry (import by name).

Each file is the specification of its layout: NumPy `pack` and `unpack`, to which the C++ kernels are
held. `base.py` draws what the packed layouts share.
"""
