"""The reference: a slow, clear NumPy forward pass that the C++ decoder is held to.

May import `architectures`, `formats` and errors. Called by tests, `evaluation` and the check of a
model's first load, never by the app.
"""
