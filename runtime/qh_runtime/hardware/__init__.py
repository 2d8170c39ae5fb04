"""What the machine in front of us is: facts, each with where it came from.

Measures and never decides: no module here knows models, plans or formats. May import: the standard
library, psutil, pynvml, `qh_kernels`, `qh_runtime.errors`. Called by the planner and `qh_chat`.
"""
