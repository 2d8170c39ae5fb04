"""The models on this machine: built in, in the store folders, or in any folder a person names.

May import: `qh_runtime.checkpoints`, `errors`. Opens no socket. Called by `qh_chat`; the loader
takes the entries.
"""
