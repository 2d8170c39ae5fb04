"""Evaluation: what packing costs, in perplexity and in divergence from another decoder.

`engines.py` gives anything with logits one face; `perplexity.py` and `divergence.py` measure.
`python -m qh_runtime.evaluation MODEL --text FILE` prints one JSON object. May import the rest of
`qh_runtime` and `qh_kernels`; the app may call it.
"""
