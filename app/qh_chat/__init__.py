"""The app: command line and terminal screens over `qh_runtime`.

May import: everything below it. Nothing imports it. Importing the package loads neither NumPy nor
Textual, reads no environment and changes no state.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
