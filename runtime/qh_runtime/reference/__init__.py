"""The reference: a slow, clear NumPy forward pass that the C++ decoder is held to.

May import `architectures`, `formats` and errors. Tests and `evaluation` call it, the app never.
"""
