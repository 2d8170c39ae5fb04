"""Training of the built-in model: texts in, a ternary checkpoint out. Run as `python -m
qh_runtime.training`.

May import torch (the extra `torch`), `tokenizers`, NumPy and safetensors; the rest of `qh_runtime`
does not import this package, so that the chat path never loads torch. Importing the package itself
loads none of them either.
"""
