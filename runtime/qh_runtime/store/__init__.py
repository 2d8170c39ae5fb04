"""The models on this machine: built in, in the store, or in any folder a person names.

May import: `qh_runtime.checkpoints`, `architectures`, `planner`, `planned_model`, `packing`,
`hardware`, `tokenizers`, `options`, `errors`. Sockets are opened by `hub.py` (metadata) and
`wire.py` (payload) alone. Called by `qh_chat`; the loader takes the entries. What lies where is
drawn in `layout.py`; the way of a model from a hub is the line in `pull.py`.
"""
