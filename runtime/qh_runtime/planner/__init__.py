"""Plans: what a model will take on this machine, in itemised bytes, before anything is loaded.

Pure: a plan is a function of a profile, a DecoderSpec, weight formats and options. May import:
`qh_runtime.hardware` (types), `architectures`, `formats`, `options`, `errors`. Called by the loader
and `qh_chat`; the loader allocates from the plan.
"""
