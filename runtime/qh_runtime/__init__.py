"""From the facts of this machine to a running conversation; no screens and no threads of its own.

May import: `qh_kernels`, NumPy and the small libraries of the base install. Never Textual, torch or
transformers, except torch inside `qh_runtime.training`, which nothing else imports. Called by
`qh_chat`. Network access belongs to `store/hub.py` and `store/download.py` alone.
"""
